"""The Prometheus file: read by Prometheus' own parser, written whole, over nobody else's file."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gptq_diff.errors import UsageError
from gptq_diff.server_probe.metrics import check_place, metrics_text, write_metrics
from gptq_diff.server_probe.report import ProbeReport
from gptq_diff.server_probe.server import Found
from tests.server_probe.test_summary import of

THEN = datetime(2026, 1, 1, tzinfo=timezone.utc)
MODEL = 'a "model"\\with\nodd letters'


def text(states: str, ended: str | None = None) -> str:
    found = Found("http://h/v1", MODEL, None, None)
    return metrics_text(ProbeReport("http://h", found, "chat", tuple(of(states)), ended, 12.5, 0.0), THEN)


def values(text: str) -> dict[str, float]:
    """Name (with the state for answers) -> value, as Prometheus reads them."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all(sample.labels["server"] == "http://h" and sample.labels["model"] == MODEL for sample in samples)
    return {
        sample.name.removeprefix("gptq_diff_probe_") + sample.labels.get("state", ""): sample.value
        for sample in samples
    }


def test_a_collapsed_server() -> None:
    """All that a rule for an alert needs."""
    assert values(text("c30 c50 h51 u60")) == {
        "collapsed": 1, "judged": 1, "answerscollapsed": 2, "answershealthy": 1, "answersunjudged": 1,
        "collapsed_prompt_tokens_max": 50, "healthy_prompt_tokens_min": 51, "duration_seconds": 12.5,
        "timestamp_seconds": THEN.timestamp(),
    }  # fmt: skip


def test_a_server_that_could_not_be_judged() -> None:
    """Is not collapsed, and not judged either; what is not known is left out."""
    found = values(text("", "gone"))
    assert (found["collapsed"], found["judged"]) == (0, 0)
    assert "collapsed_prompt_tokens_max" not in found


def test_it_is_replaced_whole(tmp_path: Path) -> None:
    """By rename: no part of it is left beside, and the reader of the old file keeps the old."""
    place = tmp_path / "probe.prom"
    write_metrics(place, text("h30"))
    with place.open() as reader:
        write_metrics(place, text("c30"))
        assert values(reader.read())["collapsed"] == 0
    assert values(place.read_text())["collapsed"] == 1
    assert list(tmp_path.iterdir()) == [place]
    check_place(place)  # ours may be written again


def test_nobody_elses_file(tmp_path: Path) -> None:
    """A slip in its name costs no other file; a folder that is missing is told before anything is asked."""
    other = tmp_path / ".bashrc"
    other.write_text("alias ll='ls -l'\n")
    for place in (other, tmp_path):
        with pytest.raises(UsageError, match="holds something else"):
            check_place(place)
    with pytest.raises(UsageError, match="there is no folder"):
        check_place(tmp_path / "missing" / "probe.prom")
    (tmp_path / "empty.prom").touch()
    check_place(tmp_path / "empty.prom")
