"""`gptq-diff model fix` as it is typed: exit codes, what is shown, what is printed for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.session.in_process import FIRST

Program = Callable[..., tuple[int, str, str]]
PROMPT = json.dumps([{"token_ids": list(FIRST)}])


@pytest.mark.usefixtures("here")
def test_auto(program: Program, shifted_model: Path, tmp_path: Path) -> None:
    """The shifts are shown, then the directory; --json says the same and nothing else goes to stdout."""
    code, out, err = program("model", "fix", shifted_model, "--prompt-file", "-", "--out", tmp_path / "a", stdin=PROMPT)
    assert (code, out) == (0, "")
    assert "model.layers.1.mlp.up_proj -> mlp.down_proj (group 2" in err
    assert err.rstrip().endswith(str(tmp_path / "a"))
    code, out, err = program(
        "model", "fix", shifted_model, "--prompt-file", "-", "--out", tmp_path / "b", "--json", stdin=PROMPT
    )
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["path"] == str(tmp_path / "b")
    assert told["headroom_bits"] == 2.0
    assert [2] in [shift["groups"][0] for shift in told["shifts"]]


def test_by_hand(program: Program, shifted_model: Path, tmp_path: Path) -> None:
    """Several shifts, by default into a directory beside where one stands."""
    code, _, err = program("model", "fix", shifted_model, "--gain-shift", "1:2:0.125,0:0:0.5")
    assert code == 0
    assert (tmp_path / "cwd" / f"{shifted_model.name}-fixed" / "config.json").is_file()
    assert "4 linears changed" in err


@pytest.mark.usefixtures("here")
def test_nothing_to_find(program: Program, small_model: Path) -> None:
    code, _, err = program("model", "fix", small_model, "--prompt-file", "-", "--headroom-bits", "-9", stdin=PROMPT)
    assert code == 1
    assert "already" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "given prompts"),
        (["--prompt-file", "a.txt", "--run", "r"], "given prompts"),
        (["--gain-shift", "1:2:3"], "not a power of two"),
        (["--gain-shift", "auto,1:2:0.5"], "BLOCK:GROUP:GAIN"),
        (["--gain-shift", "1:2:0.5", "--run", "r"], "needs no prompts"),
        (["--run", "nowhere"], "is not a run"),
    ],
)
def test_usage(arguments: list[str], said: str, program: Program, small_model: Path) -> None:
    """Exit 2 with a sentence."""
    code, out, err = program("model", "fix", small_model, *arguments)
    assert (code, out) == (2, "")
    assert said in err
