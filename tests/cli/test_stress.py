"""`gptq-diff stress` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.session.in_process import FIRST

Program = Callable[..., tuple[int, str, str]]
PROMPT = json.dumps([{"token_ids": list(FIRST)}])
pytestmark = pytest.mark.usefixtures("here")


def test_both_figures_side_by_side(program: Program, shifted_model: Path) -> None:
    """Exit 0 when a kernel broke; --json has what the table has."""
    wanted = ("stress", "--model", shifted_model, "--prompt-file", "-", "--top", "2")
    code, out, err = program(*wanted, stdin=PROMPT)
    assert (code, out) == (0, "")
    assert "1.mlp.down_proj" in err
    assert {"computed", "measured"} <= set(err.split())
    code, out, err = program(*wanted, "--json", stdin=PROMPT)
    assert (code, err) == (0, "")
    rows = json.loads(out)["rows"]
    assert len(rows) == 2
    assert rows[0]["layer"] == "model.layers.1.mlp.down_proj"
    assert rows[0]["doublings"] == rows[0]["computed"] < 0


def test_nothing_breaks(program: Program, small_model: Path) -> None:
    """float32 stands all: exit 1."""
    code, _, err = program(
        "stress", "--model", small_model, "--prompt-file", "-", "--backends", "hf-fp32", stdin=PROMPT
    )
    assert code == 1
    assert "no kernel broke" in err


def test_a_kernel_that_is_not_here(program: Program, small_model: Path) -> None:
    """Exit 3, with the reason."""
    code, _, err = program(
        "stress", "--model", small_model, "--prompt-file", "-", "--backends", "vllm-gptq", stdin=PROMPT
    )
    assert code == 3
    assert "vllm-gptq cannot run here" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "given prompts"),
        (["--prompt-file", "a", "--run", "b"], "given prompts"),
        (["--run", "b"], "is not a run"),
        (["--run", "b", "--backends", "sim-exlama"], "did you mean"),
    ],
)
def test_usage(arguments: list[str], said: str, program: Program, small_model: Path) -> None:
    """Exit 2 with a sentence."""
    code, out, err = program("stress", "--model", small_model, *arguments)
    assert (code, out) == (2, "")
    assert said in err
