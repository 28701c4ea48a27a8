"""What a person sees while a run goes on, on a terminal and in a log."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from gptq_diff.cli.live import LiveWatcher
from gptq_diff.records import Prompt
from gptq_diff.session.asked import Asked, Backend
from tests.report.build import HOSTILE

ASKED = Asked(
    model=Path("/m"), reference_model=Path("/m"),
    prompts=(Prompt("p1", (1, 2), None, "0"), Prompt("p2", (3,), None, "0")),
    backends=tuple(Backend(name, "transformers", "k", "float16", "python") for name in ("hf-fp32", "hf-fp16")),
    reference="hf-fp32", max_new_tokens=2,
)  # fmt: skip


def told(*, terminal: bool, quiet: bool = False, width: int = 100) -> str:
    """Everything that is printed about one backend that ends well and one that fails, then about judging."""
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=terminal, width=width, markup=False, emoji=False, highlight=False, quiet=quiet,
        color_system=None,
    )  # fmt: skip
    with LiveWatcher(ASKED, console, quiet=quiet) as watcher:
        watcher.worker("hf-fp32", {"event": "loaded", "seconds": 1.0, "versions": {}})
        for job in (0, 1):
            watcher.worker("hf-fp32", {"event": "job", "job": job, "layers": 14})
            for step in (0, 1):
                event = {"event": "step", "job": job, "step": step, "index": 7, "layer": f"model.layers.0.{HOSTILE}"}
                watcher.worker("hf-fp32", event)
            watcher.worker("hf-fp32", {"event": "done", "job": job})
        watcher.worker("hf-fp32", {"event": "end"})
        watcher.worker("hf-fp16", {"event": "job", "job": 0, "layers": 0})
        watcher.worker("hf-fp16", {"event": "failed", "reason": f"its worker was killed {HOSTILE}"})
        for done in (1, 2, 3):
            watcher.judging(done, 3)
    return out.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    """One a backend and one for the judging, without a control character: a CI log."""
    lines = told(terminal=False, width=300).splitlines()
    assert lines[0] == "hf-fp32: captured"
    assert lines[1].startswith("hf-fp16: failed: its worker was killed red [bold]markup[/bold] :smile:")
    assert lines[2:] == ["judged 3 linears"]
    assert not [c for line in lines for c in line if ord(c) < 32 or 127 <= ord(c) < 160]


@pytest.mark.parametrize("width", [20, 60, 200])
def test_bars_on_a_terminal(width: int) -> None:
    """No exception at any width; the only escapes are Rich's own."""
    text = told(terminal=True, width=width)
    assert "hf-fp32" in text
    assert "[31m" not in text
    assert "title" not in text
    if width == 200:
        assert "failed: its worker was killed" in text
        assert "3 of 3 linears" in text


def test_quiet_says_nothing() -> None:
    assert told(terminal=False, quiet=True) == ""


def test_a_failure_stops_the_bars(tmp_path: Path) -> None:
    """An exception passes through, with the terminal as it was."""
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), LiveWatcher(ASKED, Console(file=out, force_terminal=True), quiet=False):
        raise KeyboardInterrupt
    assert out.getvalue().rstrip("\n").endswith("\x1b[?25h")  # the cursor is shown again
