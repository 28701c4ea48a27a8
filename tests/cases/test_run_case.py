"""One case from its file to its outcome: planted, skipped, refused, used again only where nothing has changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff.cases import run_case as module
from gptq_diff.cases.outcome_file import read_outcome
from gptq_diff.cases.read import read_case
from gptq_diff.cases.run_case import RunSettings, run_case
from gptq_diff.errors import UsageError
from gptq_diff.records import ERROR, FAILED, HELD, SKIPPED, CaseOutcome
from tests.cases.written import BANG, write_case

AGAIN = RunSettings(reuse=True)
PLANTED = '[fault]\nkind = "{kind}"\nlayer = "model.layers.{layer}"\nwhere = "{where}"\nsize = 0.9\n\n[[prompt]]'


def case_of(folder, *changes):
    return read_case(write_case(folder, BANG, *changes))


@pytest.fixture
def runs(monkeypatch):
    """How often the main job ran."""
    found = []

    def counted(*given):
        found.append(given[0])
        return real(*given)

    real = module.run_job
    monkeypatch.setattr(module, "run_job", counted)
    return found


def test_a_case_that_holds(tmp_path, here):
    """Outcome and run directory lie where they were asked for, and the outcome read back is the same."""
    case = case_of(tmp_path / "bang")
    outcome = run_case(case, out=tmp_path / "out")
    assert (outcome.name, outcome.state, outcome.reason) == ("bang", HELD, "")
    assert [(c.backend, c.stated) for c in outcome.checks] == [
        ("sim-gptq", True), ("hf-fp32", False), ("hf-fp16", False),
    ]  # fmt: skip
    stored = CaseOutcome.from_json(json.loads((tmp_path / "out" / "outcome.json").read_text()))
    assert stored == outcome
    report = json.loads((tmp_path / "out" / "run" / "report.json").read_text())
    assert {r["backend"] for r in report["results"]} == {"hf-fp32", "hf-fp16", "sim-gptq"}
    figures = {f.backend: f for f in outcome.figures}
    prefill = {b: [n for n in f.linears if "@" not in n and "(decode)" not in n] for b, f in figures.items()}
    assert len(prefill["hf-fp16"]) == 28
    assert all(0 < one.ratio < 3 for one in figures["hf-fp16"].linears.values())
    assert len(prefill["sim-gptq"]) < 28  # after the overflow nothing has a size


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('"overflow"', '"diverged"'), "status: expected diverged, happened overflow"),
        (("gain = 8", "gain = 1"), "status: expected overflow, happened agree"),
    ],
)
def test_a_case_that_does_not_hold(tmp_path, here, change, told):
    """The wrong failure, or none where one is expected."""
    outcome = run_case(case_of(tmp_path / "bang", change), out=tmp_path / "out")
    assert outcome.state == FAILED
    assert outcome.checks[0].differences[0] == told


def test_a_backend_that_nobody_expected_to_break(tmp_path, here):
    """sim-exllama breaks too; no expectation names it, so the case fails."""
    outcome = run_case(case_of(tmp_path / "bang", ('"hf-fp16",', '"sim-exllama",')), out=tmp_path / "out")
    assert outcome.state == FAILED
    (wrong,) = (c for c in outcome.checks if not c.held)
    assert (wrong.backend, wrong.stated) == ("sim-exllama", False)


def test_other_backends_instead(tmp_path, here):
    """Expectations of what was not asked for are left out, and all that runs has to agree."""
    outcome = run_case(case_of(tmp_path / "bang"), out=tmp_path / "out", backends="sim-reconstruct")
    assert outcome.state == HELD
    assert [(c.backend, c.stated) for c in outcome.checks] == [("hf-fp32", False), ("sim-reconstruct", False)]


def test_a_gpu_case_is_skipped_with_the_reason(tmp_path, runs):
    """Never passed in silence: nothing has run."""
    outcome = run_case(case_of(tmp_path / "bang", ('"hf-fp16",', '"gptq-marlin",')), out=tmp_path / "out")
    assert outcome.state == SKIPPED
    assert "gptq-marlin" in outcome.reason
    assert "NVIDIA GPU" in outcome.reason
    assert runs == []
    assert (tmp_path / "out" / "outcome.json").is_file()


def test_a_model_that_is_not_here_is_skipped_with_the_reason(tmp_path, runs):
    """A path is never fetched."""
    build = BANG[BANG.index("build =") : BANG.index("[[prompt]]")]
    outcome = run_case(case_of(tmp_path / "bang", (build, 'path = "nobody/nothing"\n\n')), out=tmp_path / "out")
    assert (outcome.state, runs) == (SKIPPED, [])
    assert outcome.reason.startswith("its model is not here: ")


def test_a_path_beside_the_case_file(tmp_path, here):
    """A relative directory is the case file's neighbour, wherever the user stands."""
    from gptq_diff.models.build import build_model
    from gptq_diff.models.options import BuildOptions, GainShift

    build_model("tiny-qwen2", BuildOptions(gain_shift=GainShift(1, 2, 8)), tmp_path / "bang" / "model")
    build = BANG[BANG.index("build =") : BANG.index("[[prompt]]")]
    outcome = run_case(case_of(tmp_path / "bang", (build, 'path = "model"\n\n')), out=tmp_path / "out")
    assert outcome.state == HELD


def test_a_case_that_asks_for_a_prefix_cache_is_skipped_where_there_is_none(tmp_path, runs):
    """The simulators have none; skipped, not run without."""
    outcome = run_case(case_of(tmp_path / "bang", ("[run]", "[run]\nprefix_cache = true")), out=tmp_path / "out")
    assert (outcome.state, runs) == (SKIPPED, [])
    assert "prefix cache" in outcome.reason


FAULTS = [("scale-group", "1.mlp.up_proj", "bytes"), ("nibble-order", "0.mlp.down_proj", "kernel")]


@pytest.mark.parametrize(("kind", "layer", "where"), FAULTS)
def test_a_planted_fault_is_in_the_backends_alone(tmp_path, here, kind, layer, where):
    """In the bytes that backends load, or in their kernel; the reference reads the sound checkpoint and agrees."""
    fault = PLANTED.format(kind=kind, layer=layer, where=where)
    case = case_of(tmp_path / "bang", ("gain = 8", "gain = 1"), ("[[prompt]]", fault), ('"sim-gptq"]', '"hf-fp16"]'),
                   ('["hf-fp16", ', "["))  # fmt: skip
    outcome = run_case(case, out=tmp_path / "out")
    seen = {s.backend: (s.status, s.layer, s.cause) for s in outcome.seen}
    assert seen == {
        "hf-fp32": ("agree", None, None), "hf-fp16": ("diverged", f"model.layers.{layer}", kind),
    }  # fmt: skip
    assert outcome.planted.startswith(f"{kind} ")
    report = json.loads((tmp_path / "out" / "run" / "report.json").read_text())
    assert (report["reference_model"] is not None) == (where == "bytes")


@pytest.mark.parametrize(
    ("kind", "layer", "where", "why"),
    [
        ("g-idx-ignored", "1.mlp.up_proj", "bytes", "its rows are in order"),
        ("clamp", "1.mlp.up_proj", "bytes", "no checkpoint says so"),
        ("scale-group", "7.mlp.up_proj", "bytes", "no quantised linear"),
    ],
)
def test_a_fault_without_a_place_is_the_cases_own_mistake(tmp_path, here, kind, layer, where, why):
    """Not an error of judging: exit 2, with the reason."""
    fault = PLANTED.format(kind=kind, layer=layer, where=where)
    outcome = run_case(case_of(tmp_path / "bang", ("[[prompt]]", fault)), out=tmp_path / "out")
    assert (outcome.state, outcome.usage) == (ERROR, True)
    assert why in outcome.reason


def test_a_fault_without_a_place_in_the_kernel_fails_its_backends(tmp_path, here):
    """The worker finds out; its backends are reported with the reason, and nothing is passed."""
    fault = PLANTED.format(kind="result-overflow", layer="1.mlp.up_proj", where="kernel")
    outcome = run_case(case_of(tmp_path / "bang", ("[[prompt]]", fault)), out=tmp_path / "out")
    assert outcome.state in (ERROR, FAILED)
    assert "result-overflow has no place at model.layers.1.mlp.up_proj" in outcome.reason


class TestUsedAgain:
    """An outcome that lies there is taken only where the case, the versions and the checkpoint are the same."""

    def first(self, tmp_path, *changes):
        return run_case(case_of(tmp_path / "bang", *changes), out=tmp_path / "out", settings=AGAIN)

    def test_the_same_is_not_run_again(self, tmp_path, here, runs):
        before, after = self.first(tmp_path), self.first(tmp_path)
        assert len(runs) == 1
        assert after == replace(before, reused=True) == read_outcome(tmp_path / "out")

    def test_not_without_being_asked(self, tmp_path, here, runs):
        self.first(tmp_path)
        run_case(case_of(tmp_path / "bang"), out=tmp_path / "out")
        assert len(runs) == 2

    def test_another_case_is_run(self, tmp_path, here, runs):
        self.first(tmp_path)
        outcome = self.first(tmp_path, ("max_new_tokens = 4", "max_new_tokens = 5"))
        assert (len(runs), outcome.reused) == (2, False)

    def test_another_version_is_run(self, tmp_path, here, runs, monkeypatch):
        self.first(tmp_path)
        from gptq_diff.cases import key

        monkeypatch.setattr(key, "environment", lambda: {"torch": "9.9"})
        assert not self.first(tmp_path).reused
        assert len(runs) == 2

    def test_a_damaged_outcome_is_run_again(self, tmp_path, here, runs):
        self.first(tmp_path)
        (tmp_path / "out" / "outcome.json").write_text('{"name": "bang"')
        assert not self.first(tmp_path).reused

    def test_another_checkpoint_is_run(self, tmp_path, here, runs):
        """The same case on a directory whose scales have changed meanwhile."""
        import numpy as np
        from safetensors.numpy import load_file, save_file

        from gptq_diff.models.build import build_model
        from gptq_diff.models.options import BuildOptions, GainShift

        model = build_model("tiny-qwen2", BuildOptions(gain_shift=GainShift(1, 2, 8)), tmp_path / "bang" / "model")
        build = BANG[BANG.index("build =") : BANG.index("[[prompt]]")]
        change = (build, 'path = "model"\n\n')
        before = self.first(tmp_path, change)
        file = model / "model.safetensors"
        tensors = load_file(str(file))
        tensors["model.layers.3.mlp.up_proj.scales"] *= np.float16(2)
        save_file(tensors, str(file), {"format": "pt"})
        after = self.first(tmp_path, change)
        assert (len(runs), after.reused) == (2, False)
        assert after.fingerprint != before.fingerprint

    def test_what_was_left_of_an_interrupted_try_is_gone(self, tmp_path, here, runs):
        """Captures without an outcome are nobody's: the case starts clean."""
        stale = tmp_path / "out" / "run" / "captures" / "sim-gptq" / "short"
        stale.mkdir(parents=True)
        (stale / "manifest.json").write_text("{}")
        (tmp_path / "out" / "run" / "left.txt").write_text("x")
        assert self.first(tmp_path).state == HELD
        assert not (tmp_path / "out" / "run" / "left.txt").exists()


def test_a_case_file_is_never_emptied_away(tmp_path):
    """A case that lies in the folder it is to run in would be gone before it is read again."""
    case = case_of(tmp_path / "out" / "bang")
    with pytest.raises(UsageError, match="is emptied before"):
        run_case(case, out=tmp_path / "out")
    assert Path(case.file).is_file()
