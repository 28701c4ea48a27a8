"""What holds for every report whatever is in it: each form is made, is sound, and a redacted one gives nothing away."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import xmlschema
from hypothesis import HealthCheck, given, settings
from rich.console import Console

from gptq_diff.bundle.issue import Material, issue
from gptq_diff.records import Report
from gptq_diff.report.console import show
from gptq_diff.report.html import Parts, render_html
from gptq_diff.report.json_report import read_report, to_json, write_report
from gptq_diff.report.junit import junit
from gptq_diff.report.markdown import LIMIT, markdown
from gptq_diff.report.redacted import redacted
from tests.report.build import HOSTILE
from tests.report.generated import reports
from tests.report.html.test_page import data_of, words

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HARM = ("<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "@everyone #1 ![x](http://evil)", HOSTILE)
ANY = ("", "a", "hf-fp32", "p1-t037", "0.20.2", "model.layers.3.mlp.up_proj", "Ünïcode 字 \U0001f600", "|`*_\\", *HARM)
SECRETS = ("Wolkenstein", "hf_WqZrTyUiOpLk", "10.83.147.22", "geheim/akten.db", "falkenhorst_proj", "svc:Xk9pLq2w@host")
KNOWN = (
    "overflow at {} tokens", "timed out after 3 s {}", "{}", "prompt {}", "torch {}", "Intel {}",
    "its worker ended with status 1: OSError: {}", "float16 accumulation ({}): 3 rows",
)  # fmt: skip
TOLD = tuple(known.format(secret) for known in KNOWN for secret in SECRETS)
"""Sentences of ours with a secret in them, bare or among known words."""


def as_console(report: Report) -> str:
    out = io.StringIO()
    show(Console(file=out, width=100, force_terminal=False), report, {})
    return out.getvalue()


def as_page(report: Report) -> str:
    text = render_html(Parts(report, {}))
    return words(text) + json.dumps(data_of(text))


FORMS: dict[str, Callable[[Report], str]] = {
    "json": to_json, "console": as_console, "md": lambda r: markdown(r, {}), "junit": junit, "html": as_page,
    "issue": lambda r: issue(Material(redacted(r, include_prompts=True), None, "it was not made")),
}  # fmt: skip


@FEW
@given(report=reports(ANY))
def test_it_is_read_as_it_was_written(report: Report, tmp_path: Path) -> None:
    """Field for field, also what a JSON file spells otherwise."""
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report


@pytest.mark.parametrize("form", FORMS)
@FEW
@given(report=reports(ANY))
def test_every_form_is_made(form: str, report: Report) -> None:
    """No content makes a renderer fail, and no control characters come through, but in JSON, which escapes them."""
    text = FORMS[form](report)
    assert text.strip()
    assert not set("\x00\x07\x1b\x7f\x9b\u202e\u200b") & set(text)


@FEW
@given(report=reports(ANY))
def test_every_form_is_sound(report: Report) -> None:
    """A page without tags of others, a comment that GitHub takes, a file that Jenkins reads."""
    page = words(render_html(Parts(report, {})))
    assert not re.search(r"<script|<img|onerror=[^a&]", page.replace("&lt;", ""))
    assert len(markdown(report, {})) < LIMIT
    schema = xmlschema.XMLSchema(Path(__file__).parent / "schemas" / "junit-10.xsd")
    schema.validate(junit(report))


@pytest.mark.parametrize("form", FORMS)
@FEW
@given(report=reports(TOLD))
def test_no_form_of_a_redacted_report_holds_a_secret(form: str, report: Report) -> None:
    """In whatever field it stood, and among whatever words."""
    text = FORMS[form](redacted(report)).lower()
    assert [secret for secret in SECRETS if secret.lower() in text] == []


@FEW
@given(report=reports(TOLD))
def test_without_redaction_the_secrets_would_be_seen(report: Report) -> None:
    """Or the test above would prove nothing: every report holds some, in JSON at least."""
    assert any(secret.lower() in to_json(report).lower() for secret in SECRETS)


@FEW
@given(report=reports(TOLD + ANY))
def test_redacting_again_changes_nothing(report: Report) -> None:
    """What may be shown may be shown: a bundle of somebody who got a redacted report says the same."""
    once = redacted(report)
    assert redacted(once) == once
