"""--simulate targeted: the verdict of simulating everything, at a fraction of the work, and said to be that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gptq_diff.exit_codes import exit_code
from gptq_diff.kernels import compiler
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions, GainShift
from gptq_diff.records import BOUNDED, NOT_SIMULATED
from gptq_diff.session import prepare
from tests.session.in_process import FIRST, asked, result, run

pytestmark = [
    pytest.mark.usefixtures("here"),
    pytest.mark.skipif(not compiler.available(), reason="targeted mode needs the compiled loops"),
]


def told(report, backend):
    """What a verdict is made of."""
    found = result(report, backend)
    bad = found.first_bad
    where = None if bad is None else (bad.layer, bad.step, bad.kind, bad.nonfinite, bad.first_index)
    return found.status, found.collapsed, where, [f.cause for f in found.findings]


@pytest.mark.parametrize("seed", range(10))
def test_planted_models_get_the_same_verdict(tmp_path: Path, seed: int) -> None:
    """Random models, of which two in three have a gain shift at a random block, are judged alike in both modes."""
    rng = np.random.default_rng(seed)
    shift = None if rng.random() < 1 / 3 else GainShift(int(rng.integers(2)), 10, 8)
    options = BuildOptions(blocks=2, hidden=512, intermediate=1024, seed=seed, gain_shift=shift)
    model = build_model("tiny-qwen2", options, tmp_path / "model")
    prompt = (510, *rng.integers(1, 500, int(rng.integers(2, 12))).tolist())
    every, some = (
        run(asked(model, "sim-exllama,sim-gptq", (prompt,), simulate=mode, max_new_tokens=1), tmp_path / mode)
        for mode in ("all", "targeted")
    )
    for backend in ("sim-exllama", "sim-gptq"):
        assert told(every, backend) == told(some, backend)
    assert (every.verdict.status, every.verdict.layer) == (some.verdict.status, some.verdict.layer)
    assert exit_code(every) == exit_code(some) == (0 if shift is None else 1)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks wide enough for most linears to be proved safe; block 1's down_proj overflows."""
    options = BuildOptions(blocks=2, hidden=512, intermediate=1024, gain_shift=GainShift(1, 10, 8))
    return build_model("tiny-qwen2", options, tmp_path_factory.mktemp("wide") / "model")


def test_what_was_not_simulated_is_said(wide_model: Path, tmp_path: Path) -> None:
    """Compared and proved safe make up all linears; tokens are approximate; no bounded call is judged."""
    report = run(asked(wide_model, "hf-fp16,sim-exllama", simulate="targeted"), tmp_path / "run")
    simulated, whole = result(report, "sim-exllama"), result(report, "hf-fp16")
    assert simulated.layers.compared + simulated.layers.bounded == 14 and simulated.layers.bounded >= 9
    assert {s.reason for s in simulated.layers.skipped} == {NOT_SIMULATED}
    assert simulated.tokens_approximate and not whole.tokens_approximate
    assert (whole.layers.compared, whole.layers.bounded) == (14, 0)
    assert BOUNDED in simulated.kernel.values()
    judged = (tmp_path / "run" / "judged" / "sim-exllama" / "p1.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"] for line in judged} == {"exllama-fast", "bias"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["simulate"] == "targeted"
    raw = json.loads((tmp_path / "run" / "report.json").read_text())
    assert raw["results"][-1]["layers"]["bounded"] == simulated.layers.bounded
    assert "approximate" in (tmp_path / "run" / "report.md").read_text()


def test_a_sound_model_of_which_nothing_was_simulated_agrees(tmp_path: Path) -> None:
    """Nothing compared is no verdict, unless a bound speaks for what was not compared."""
    options = BuildOptions(blocks=1, hidden=512, intermediate=1024)
    model = build_model("tiny-qwen2", options, tmp_path / "model")
    report = run(asked(model, "sim-exllama", ((7, *FIRST),), simulate="targeted"), tmp_path / "run")
    found = result(report, "sim-exllama")
    assert found.status == "agree" and found.layers.bounded > 0
    assert f"{found.layers.bounded} proved safe and not simulated" in report.verdict.summary


def test_auto_is_targeted_for_a_large_model_alone(
    wide_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settled before anything runs, by the number of quantised weights; what was asked for outright stays."""
    assert asked(wide_model, simulate="auto").simulate == "all"
    monkeypatch.setattr(prepare, "MANY_WEIGHTS", 1000)
    assert asked(wide_model, simulate="auto").simulate == "targeted"
    assert asked(wide_model, simulate="all").simulate == "all"
