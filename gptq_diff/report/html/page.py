"""Putting the page together: one file, whose scripts are named by their hashes and which may load nothing."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gptq_diff.records import Report
from gptq_diff.report.advice import advice, headline, missing, worst_result
from gptq_diff.report.cleaned import cleaned
from gptq_diff.report.experiments import experiment_lines
from gptq_diff.report.headroom import headroom_lines
from gptq_diff.report.html import about, tables
from gptq_diff.report.html.data import page_data
from gptq_diff.report.html.library import packed_json, plotting_library, source_hash
from gptq_diff.report.html.parts import Parts, pictured
from gptq_diff.report.html.swept import asked, swept_prompts
from gptq_diff.report.paths import about_backend, about_path
from gptq_diff.report.quantisation import quantisation_line
from gptq_diff.report.repeat import PROMPTS, commands, prompt_line
from gptq_diff.report.sweeps import at_the_changes, sweep_lines
from gptq_diff.text import clean, one_line

HERE = Path(__file__).parent
SCRIPT = ("words", "theme", "frame", "depth", "maps", "headroom", "sums", "sweeps", "table", "start")
"""Files of script/ in the order in which they are put together."""


def render_html(parts: Parts) -> str:
    """The whole page. All text in it is cleaned and escaped; it is the same for the same parts."""
    report = cleaned(parts.report, one_line)
    parts = Parts(
        report,
        {cleaned(key, one_line): [cleaned(j, one_line) for j in rows] for key, rows in parts.judged.items()},
        {one_line(name): cleaned(prompt, clean) for name, prompt in parts.prompts.items()},
        {cleaned(key, one_line): cleaned(rows, one_line) for key, rows in parts.rows.items()},
    )
    library, script = plotting_library(), _script()
    policy = (
        f"default-src 'none'; script-src {library.hash} {source_hash(script.encode())}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    worst = worst_result(report)
    shown = at_the_changes(report)
    template = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.jinja")
    return template.render(
        policy=policy, style=Markup(_own("report.css")), script=Markup(script),  # noqa: S704  our own files
        library=library.packed, data=packed_json(page_data(parts)),
        broke="" if worst is None else f"{about_path(worst)} {about_backend(report, worst)}".strip(),
        commands=commands(report), prompt_file=PROMPTS, prompt_line=prompt_line(report),
        report=report, made=_made(report.created), missing=missing(report), headline=headline(report),
        advice=advice(report), worst=worst, right=_right(report),
        sign=tables.sign, matrix=tables.matrix(shown, pictured(report)), counts=tables.counts(shown),
        written=tables.written(shown),
        findings=tables.findings(report.results), workarounds=tables.workarounds(report.results),
        skipped=tables.skipped_linears(report.results), sweeps=sweep_lines(report),
        swept=swept_prompts(report), asked=asked(report), experiments=experiment_lines(report),
        headroom=headroom_lines(report), prompts=parts.prompts,
        quantised=[line for r in report.results if (line := quantisation_line(r)) is not None],
        ran=about.ran(report), facts=about.facts(report), judged=any(parts.judged.values()),
    )  # fmt: skip


def _made(created: str) -> str:
    """`2026-01-02 03:04 UTC`; as it stands where it has another form."""
    return f"{created[:10]} {created[11:16]} UTC" if created.endswith("+00:00") and len(created) == 25 else created


def _script() -> str:
    """One function, so that nothing of the page's own is global."""
    parts = "".join(_own(f"script/{name}.js") for name in SCRIPT)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _right(report: Report) -> str | None:
    """What the reference wrote for the prompt of the verdict."""
    for r in report.results:
        if (r.backend, r.prompt) == (report.reference, report.verdict.prompt):
            return r.text
    return None
