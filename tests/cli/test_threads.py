"""Idle threads sleep: it is said to OpenMP before torch is loaded, and a user's own word stands."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from gptq_diff.cli import compare, demo, run
from gptq_diff.cli.threads import SPINS, wait_without_spinning


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_it_is_a_default_alone(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], spins: str | None) -> None:
    """A user's own word on either variable stands."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wait_without_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    assert os.environ.get("OMP_WAIT_POLICY") == given.get("OMP_WAIT_POLICY")


@pytest.mark.parametrize("module", [run, compare, demo], ids=lambda m: m.__name__)
def test_it_comes_first(module: object) -> None:
    """Before the imports inside the command, which load torch."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))  # type: ignore[attr-defined]
    name = str(module.__name__).rpartition(".")[2]  # type: ignore[attr-defined]
    (command,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    first = command.body[1]  # after the docstring
    assert ast.unparse(first) == "wait_without_spinning()"
