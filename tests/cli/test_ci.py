"""`gptq-diff ci init` as it is typed: one forge, no file written over unasked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Program = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("forge", "place"), [("--github", ".github/workflows/gptq-diff.yml"), ("--gitlab", ".gitlab-ci.yml")]
)
def test_it_is_written_where_the_forge_looks(forge: str, place: str, program: Program) -> None:
    """Folders made; a second time only by force."""
    code, out, err = program("ci", "init", forge)
    assert (code, out) == (0, "")
    assert place in err
    written = Path(place).read_text()
    assert written.startswith(f"# Written by `gptq-diff ci init {forge}`")
    Path(place).write_text("mine")
    code, _, err = program("ci", "init", forge)
    assert code == 2
    assert "is there already" in err
    assert Path(place).read_text() == "mine"
    assert program("ci", "init", forge, "--force")[0] == 0
    assert Path(place).read_text() == written


def test_options(program: Program) -> None:
    """Engine, cases, what is installed, where to."""
    code, _, _ = program(
        "ci", "init", "--gitlab", "--engine", "vllm", "--cases", "a, b", "--install", "./here", "--out", "x/y.yml"
    )
    assert code == 0
    text = Path("x/y.yml").read_text()
    assert '"a b"' in text
    assert '"./here"' in text
    assert "tags: [gpu]" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one forge"),
        (["--github", "--gitlab"], "one forge"),
        (["--github", "--out", "."], "is a directory"),
        (["--github", "--install", "$(id)"], "what a shell would obey"),
        (["--github", "--cases", "a;b"], "what a shell would obey"),
        (["--github", "--engine", "tgi"], "tgi"),
    ],
)
def test_usage(arguments: list[str], said: str, program: Program) -> None:
    """Exit 2, nothing written."""
    code, _, err = program("ci", "init", *arguments)
    assert code == 2
    assert said in err
    assert list(Path().iterdir()) == []
