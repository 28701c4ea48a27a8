"""The main job on small real checkpoints: what is sound agrees, what is broken is found where it is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.exit_codes import exit_code
from gptq_diff.launch import Listener, Load, Outcome
from gptq_diff.session import capture_all
from gptq_diff.session.asked import RunRecord
from tests.session.damage import DAMAGED_LAYER, damaged_copy
from tests.session.in_process import FIRST, SECOND, Silent, asked, result, run, run_here

pytestmark = pytest.mark.usefixtures("here")

FIVE = ["hf-fp32", "hf-fp16", "sim-exllama", "sim-reconstruct", "sim-gptq"]
OVERFLOWS = "model.layers.1.mlp.down_proj"


class TestSoundModel:
    def test_all_five_backends_agree_on_every_linear(self, small_model: Path, tmp_path: Path) -> None:
        """No false alarm, on a short and on a long prompt, and every linear of every one is compared."""
        report = run(asked(small_model, None, (FIRST, SECOND)), tmp_path / "run")
        assert [(r.backend, r.prompt) for r in report.results] == [(b, p) for b in FIVE for p in ("p1", "p2")]
        assert "Every backend agrees" in (tmp_path / "run" / "report.html").read_text()
        assert all((tmp_path / "run" / "judged" / b / f"{p}.rows.json").is_file() for b in FIVE for p in ("p1", "p2"))
        assert {(r.status, r.layers.compared, len(r.layers.skipped)) for r in report.results} == {("agree", 14, 0)}
        assert "14 of 14" in report.verdict.summary
        assert exit_code(report) == 0

    def test_the_prefill_alone(self, small_model: Path, tmp_path: Path) -> None:
        """--max-new-tokens 1 is one forward pass and one token."""
        report = run(asked(small_model, max_new_tokens=1), tmp_path / "run")
        assert {(r.steps, len(r.tokens), r.status) for r in report.results} == {(1, 1, "agree")}

    def test_repeats_of_what_is_deterministic_agree(self, small_model: Path, tmp_path: Path) -> None:
        """--repeats 2 captures every prompt twice and reports it once."""
        report = run(asked(small_model, repeats=2), tmp_path / "run")
        assert [r.backend for r in report.results] == ["hf-fp32", "hf-fp16"]
        assert {(r.status, r.findings) for r in report.results} == {("agree", ())}
        assert (tmp_path / "run" / "captures" / "hf-fp16" / "p1@2" / "manifest.json").is_file()

    def test_teacher_forcing_feeds_the_references_tokens(self, shifted_model: Path, tmp_path: Path) -> None:
        """A backend that would go its own way is fed what the reference wrote, so every step can be compared."""
        report = run(asked(shifted_model, "sim-exllama", teacher_force=True, max_new_tokens=3), tmp_path / "run")
        free, forced = result(report, "hf-fp32"), result(report, "sim-exllama")
        assert forced.tokens != free.tokens  # what it would have said is still reported
        manifest = RunDir(tmp_path / "run").reader("sim-exllama", "p1").manifest
        assert manifest.forced
        assert forced.steps == free.steps == 3

    def test_nothing_is_forced_where_the_reference_failed(
        self, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Running free in its place would be another experiment than the one asked for."""

        def failing(load: Load, listen: Listener, follow_up: object = None) -> list[Outcome]:
            assert load.spec.jobs[0].backend == "hf-fp32"
            return [Outcome("hf-fp32", failure="gone")]

        monkeypatch.setattr(capture_all, "run_load", failing)
        report = run(asked(small_model, "hf-fp16", teacher_force=True), tmp_path / "run")
        reasons = {s.backend: s.reason for s in report.skipped_backends}
        assert reasons == {"hf-fp32": "gone", "hf-fp16": capture_all.NOTHING_TO_FORCE}
        assert exit_code(report) == 3

    @pytest.mark.parametrize("backends", ["hf-fp16,sim-gptq", "sim-gptq,hf-fp32,hf-fp16", "sim-gptq,hf-fp16,hf-fp32"])
    def test_results_come_in_the_order_given(self, small_model: Path, tmp_path: Path, backends: str) -> None:
        """The reference where the user put it, or first where it was left out."""
        report = run(asked(small_model, backends, max_new_tokens=1), tmp_path / "run")
        expected = backends.split(",")
        assert [r.backend for r in report.results] == (expected if "hf-fp32" in expected else ["hf-fp32", *expected])

    def test_another_reference(self, small_model: Path, tmp_path: Path) -> None:
        """--reference names any backend: the others are held against its inputs and tokens."""
        report = run(asked(small_model, "sim-gptq", reference="hf-fp16"), tmp_path / "run")
        assert report.reference == "hf-fp16"
        assert [r.backend for r in report.results] == ["hf-fp16", "sim-gptq"]
        assert result(report, "hf-fp16").first_token_kl is None
        assert result(report, "sim-gptq").first_token_kl is not None

    def test_the_reference_alone_is_judged_on_its_own(self, small_model: Path, tmp_path: Path) -> None:
        """contract.md: alone, it is judged on its own."""
        report = run(asked(small_model, "hf-fp32"), tmp_path / "run")
        assert [(r.backend, r.status) for r in report.results] == [("hf-fp32", "agree")]
        assert exit_code(report) == 0

    def test_run_json_ends_finished_and_says_what_was_asked(self, small_model: Path, tmp_path: Path) -> None:
        """It is what every later command relies on, and reads back as what was written."""
        watcher = Silent()
        report = run(asked(small_model, seed=7, full_hash=True), tmp_path / "run", watcher)
        raw = RunDir(tmp_path / "run").run()
        record = RunRecord.from_json(raw)
        assert record.state == "finished"
        assert json.loads(json.dumps(record.to_json())) == raw
        assert record.full_hash
        assert record.model == report.model
        assert watcher.judged[-1] == (14, 14)
        assert {b for b, _ in watcher.events} == {"hf-fp32", "hf-fp16"}


class TestBrokenModel:
    def test_the_overflow_is_found_where_it_was_planted(self, shifted_model: Path, tmp_path: Path) -> None:
        """The reported bug: the fast path overflows in one layer and the model writes token 0, all else agrees."""
        report = run(asked(shifted_model, None), tmp_path / "run")
        statuses = {r.backend: r.status for r in report.results}
        assert statuses == dict.fromkeys(FIVE, "agree") | {"sim-exllama": "overflow", "sim-gptq": "overflow"}
        broken = result(report, "sim-exllama")
        assert broken.first_bad is not None
        assert (broken.first_bad.layer, broken.first_bad.step) == (OVERFLOWS, 0)
        assert broken.first_bad.exact_absmax < 100
        assert (broken.collapsed, broken.collapse_token) == (True, 0)
        assert set((broken.text or "").replace("!", "")) == set()
        assert report.verdict.layer == OVERFLOWS
        assert exit_code(report) == 1

    def test_a_damaged_checkpoint_is_found_out_by_a_sound_one(self, small_model: Path, tmp_path: Path) -> None:
        """--model damaged, --reference-model sound: every backend but the reference breaks, at the damaged layer."""
        damaged = damaged_copy(small_model, tmp_path / "damaged")
        wanted = asked(damaged, "hf-fp16,sim-reconstruct", reference_model=small_model)
        report = run(wanted, tmp_path / "run")
        assert result(report, "hf-fp32").status == "agree"
        for backend in ("hf-fp16", "sim-reconstruct"):
            found = result(report, backend)
            assert found.status == "diverged"
            assert found.first_bad is not None
            assert found.first_bad.layer == DAMAGED_LAYER
        assert report.reference_model is not None
        assert report.reference_model.fingerprint != report.model.fingerprint
        assert exit_code(report) == 1

    def test_a_nan_scale_is_the_weights_fault(self, small_model: Path, tmp_path: Path) -> None:
        """Every backend, the reference included, is told `nan` at that layer, and the report is valid JSON."""
        damaged = damaged_copy(small_model, tmp_path / "damaged", nan_scale=True)
        report = run(asked(damaged, "hf-fp16"), tmp_path / "run")
        assert {(r.status, r.first_bad.layer if r.first_bad else None) for r in report.results} == {
            ("nan", DAMAGED_LAYER)
        }
        assert not result(report, "hf-fp32").collapsed
        assert exit_code(report) == 1


class TestCapture:
    def kept(self, root: Path, backend: str) -> set[str]:
        """Layers whose output is still there."""
        reader = RunDir(root).reader(backend, "p1")
        return {layer for layer in reader.manifest.order if reader.has(0, layer, "out")}

    def test_full_keeps_everything(self, shifted_model: Path, tmp_path: Path) -> None:
        report = run(asked(shifted_model, "sim-exllama", capture="full", capture_budget=1), tmp_path / "run")
        assert len(self.kept(tmp_path / "run", "sim-exllama")) == 14
        assert report.left_out == ()

    def test_auto_keeps_everything_within_the_budget(self, shifted_model: Path, tmp_path: Path) -> None:
        report = run(asked(shifted_model, "sim-exllama", capture="auto"), tmp_path / "run")
        assert len(self.kept(tmp_path / "run", "hf-fp32")) == 14
        assert report.left_out == ()

    @pytest.mark.parametrize("mode", ["stats", "auto"])
    def test_bad_layers_and_their_neighbours_survive(self, shifted_model: Path, tmp_path: Path, mode: str) -> None:
        """Over the budget, or with --capture stats: the bad layer's tensors stay, for every backend, and it is said."""
        report = run(asked(shifted_model, "sim-exllama", capture=mode, capture_budget=1), tmp_path / "run")
        expected = {"model.layers.1.mlp.up_proj", OVERFLOWS}  # the last of all linears, and the one before
        assert self.kept(tmp_path / "run", "sim-exllama") == expected
        assert self.kept(tmp_path / "run", "hf-fp32") == expected
        (said,) = report.left_out
        assert said.startswith("2 of 2 captures keep only")
        assert ("budget is 1 bytes" if mode == "auto" else "--capture stats") in said
        assert {r.layers.compared for r in report.results} == {14}

    def test_the_reference_is_dropped_last(self, small_model: Path, tmp_path: Path) -> None:
        """With room for one capture it is the reference's that stays whole."""
        size = sum(f.stat().st_size for f in self._blocks(small_model, tmp_path / "first"))
        run(asked(small_model, capture="auto", capture_budget=size), tmp_path / "second")
        assert len(self.kept(tmp_path / "second", "hf-fp32")) == 14
        assert self.kept(tmp_path / "second", "hf-fp16") == set()

    def _blocks(self, model: Path, out: Path) -> list[Path]:
        run(asked(model), out)
        return list((out / "captures" / "hf-fp32").rglob("block-*"))


class TestFailedBackends:
    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> set[str]:
        """Backends named in it fail before their first prompt."""
        names: set[str] = set()

        def load(load: Load, listen: Listener, follow_up: object = None) -> list[Outcome]:
            backends = {job.backend for job in load.spec.jobs}
            if backends & names:
                return [Outcome(b, failure="its worker\x1b[31m was killed") for b in sorted(backends)]
            return run_here(load, listen)

        monkeypatch.setattr(capture_all, "run_load", load)
        return names

    def test_one_that_fails_is_skipped_with_its_reason(
        self, small_model: Path, tmp_path: Path, failing: set[str]
    ) -> None:
        """The others get their verdict; the exit code says 3, or 0 where that is allowed."""
        failing.add("hf-fp16")
        for allow, code in ((False, 3), (True, 0)):
            report = run(asked(small_model, "hf-fp16", allow_skip=allow), tmp_path / str(allow))
            assert [(s.backend, s.reason) for s in report.skipped_backends] == [("hf-fp16", "its worker was killed")]
            assert report.skipped_backends[0].log == "logs/hf-fp16.log"
            assert [r.backend for r in report.results] == ["hf-fp32"]
            assert exit_code(report) == code

    def test_without_the_reference_the_others_are_still_judged(
        self, shifted_model: Path, tmp_path: Path, failing: set[str]
    ) -> None:
        """Local errors need no reference: the failure that is found beats the backend that could not run."""
        failing.add("hf-fp32")
        report = run(asked(shifted_model, "sim-exllama"), tmp_path / "run")
        found = result(report, "sim-exllama")
        assert found.status == "overflow"
        assert found.first_token_kl is None
        assert exit_code(report) == 1

    def test_nothing_compared_is_no_agreement(self, small_model: Path, tmp_path: Path, failing: set[str]) -> None:
        """Exit 3, whatever --allow-skip says."""
        failing.update({"hf-fp32", "hf-fp16"})
        report = run(asked(small_model, "hf-fp16", allow_skip=True), tmp_path / "run")
        assert report.verdict.status == "incomplete"
        assert report.results == ()
        assert exit_code(report) == 3

    def test_a_repeat_that_is_missing_costs_only_itself(
        self, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A worker that dies in the second run of a prompt leaves the first one's verdict."""

        def load(load: Load, listen: Listener, follow_up: object = None) -> list[Outcome]:
            outcomes = run_here(load, listen)
            for outcome in outcomes:
                if outcome.backend == "hf-fp16":
                    outcome.finished.remove("p1@2")
                    outcome.failure = "died"
            return outcomes

        monkeypatch.setattr(capture_all, "run_load", load)
        report = run(asked(small_model, repeats=2), tmp_path / "run")
        assert [(r.backend, r.status) for r in report.results] == [("hf-fp32", "agree"), ("hf-fp16", "agree")]
        assert exit_code(report) == 3


def test_an_interruption_is_written_down(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C passes on, and run.json says how far the run came."""

    def interrupted(load: Load, listen: Listener, follow_up: object = None) -> list[Outcome]:
        if load.spec.jobs[0].backend == "hf-fp16":
            raise KeyboardInterrupt
        return run_here(load, listen)

    monkeypatch.setattr(capture_all, "run_load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(asked(small_model), tmp_path / "run")
    raw: dict[str, Any] = RunDir(tmp_path / "run").run()
    assert raw["state"] == "interrupted"
    assert [b["finished"] for b in raw["backends"]] == [["p1"], []]
