"""Experiments on live kernels, through the main job: planned from its captures, run by its workers, in its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gptq_diff.compare.align import Captured
from gptq_diff.compare.judge_run import Key, judge_captures
from gptq_diff.diagnose.experiments.merge import merged
from gptq_diff.engines.hf import HfEngine
from gptq_diff.errors import BackendError
from gptq_diff.jobs import AnyJob
from gptq_diff.kernels.base import Product
from gptq_diff.launch import FollowUp, Listener, Load, Outcome
from gptq_diff.records import Experiment, Finding, Judgement, Report
from gptq_diff.report.experiments import experiment_lines
from gptq_diff.report.json_report import read_report, to_json
from gptq_diff.session import capture_all, live_again, live_load, live_subjects
from gptq_diff.session.again import compare_again
from gptq_diff.session.asked import Backend
from gptq_diff.session.live_again import Again
from gptq_diff.session.live_subjects import MOST_PROMPTS, chosen
from tests.compare.made import judgement
from tests.session.in_process import FIRST, SECOND, Silent, asked, result, run, run_here

pytestmark = pytest.mark.usefixtures("here")

DOWN = "model.layers.1.mlp.down_proj"
EVERY = ["scaled-input", "single-rows", "row-sweep", "repeats", "dirty-memory", "zero-input", "k-slices"]
SOUND = ["row-sweep", "repeats"]


@pytest.fixture
def ours_are_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transformers engine counts as one with live kernels."""
    monkeypatch.setattr(live_subjects, "SIMULATED", "none")


def named(report: Report, backend: str, prompt: str = "p1") -> dict[str, Experiment]:
    return {e.name: e for e in result(report, backend, prompt).experiments}


class TestTheMainJob:
    def test_a_fault_is_experimented_on_while_its_engine_is_there(self, shifted_model: Path, tmp_path: Path) -> None:
        """sim-gptq takes its fast path for up to 50 rows: the sweep says so, and scaling says why it fails."""
        report = run(asked(shifted_model, "sim-gptq,hf-fp16", experiments="all"), tmp_path / "run")
        found = named(report, "sim-gptq")
        assert list(found) == EVERY
        assert {e.layer for e in found.values()} == {DOWN}
        assert found["row-sweep"].figures["path_border"] == found["row-sweep"].figures["verdict_border"] == 50
        assert found["scaled-input"].finding is not None
        causes = [f.cause for f in result(report, "sim-gptq").findings]
        assert causes.count("accumulator-overflow") == causes.count("row-path") == 1
        assert causes[0] == "accumulator-overflow"
        for sound in ("hf-fp32", "hf-fp16"):
            assert list(named(report, sound)) == SOUND
            assert result(report, sound).findings == ()
            assert result(report, sound).status == "agree"

    def test_the_report_holds_them_and_keeps_its_schema(self, shifted_model: Path, tmp_path: Path) -> None:
        """Written, read again, held against the schema, and shown in a line each."""
        report = run(asked(shifted_model, "sim-gptq", (FIRST, SECOND), experiments="all"), tmp_path / "run")
        assert read_report(tmp_path / "run" / "report.json") == report
        schema = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text())
        jsonschema.validate(json.loads(to_json(report)), schema)
        lines = experiment_lines(report)
        assert sum("experiments on sim-gptq, prompt p1" in line for line in lines) == 1
        assert sum("row-sweep" in line for line in lines) == 2  # of the reference, and of sim-gptq's first prompt
        assert len(lines) == (1 + len(SOUND)) + (1 + len(EVERY)) + 1
        stored = tmp_path / "run" / "experiments" / "sim-gptq" / "p1"
        assert {p.name for p in stored.iterdir()} >= {"x.safetensors", "round-1.safetensors", "row-sweep.json"}

    def test_simulators_are_left_alone_unless_they_are_asked_for(self, shifted_model: Path, tmp_path: Path) -> None:
        """There is nothing live about them."""
        report = run(asked(shifted_model, "sim-gptq"), tmp_path / "run")
        assert result(report, "sim-gptq").status == "overflow"
        assert all(r.experiments == () for r in report.results)
        assert not (tmp_path / "run" / "experiments").exists()

    def test_a_failing_live_kernel_is_experimented_on_and_a_sound_one_is_not(
        self, shifted_model: Path, tmp_path: Path, ours_are_live: None
    ) -> None:
        report = run(asked(shifted_model, "sim-gptq,hf-fp16"), tmp_path / "run")
        assert list(named(report, "sim-gptq")) == EVERY
        assert named(report, "hf-fp16") == named(report, "hf-fp32") == {}

    def test_off_is_off(self, shifted_model: Path, tmp_path: Path, ours_are_live: None) -> None:
        report = run(asked(shifted_model, "sim-gptq", experiments="off"), tmp_path / "run")
        assert all(r.experiments == () for r in report.results)

    def test_what_is_judged_on_the_way_is_not_judged_again(
        self, shifted_model: Path, tmp_path: Path, ours_are_live: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The rest of the report is the same as without experiments."""
        plain = run(asked(shifted_model, "sim-gptq,hf-fp16", experiments="off"), tmp_path / "plain")
        judged: list[str] = []

        def noted(captures: dict[Key, Captured], *others: Any) -> dict[Key, list[Judgement]]:
            judged.extend(backend for backend, _ in captures)
            return judge_captures(captures, *others)

        monkeypatch.setattr("gptq_diff.session.compare_run.judge_captures", noted)
        report = run(asked(shifted_model, "sim-gptq,hf-fp16"), tmp_path / "run")
        assert [r.status for r in report.results] == [r.status for r in plain.results]
        assert [r.first_bad for r in report.results] == [r.first_bad for r in plain.results]
        assert all(r.seconds["judge"] > 0 for r in report.results)
        assert judged == []

    def test_progress_is_told(self, shifted_model: Path, tmp_path: Path) -> None:
        """Which linear is at work, and on which backend."""
        watcher = Silent()
        run(asked(shifted_model, "sim-gptq", experiments="all"), tmp_path / "run", watcher)
        assert ("sim-gptq", DOWN) in [(b, e["layer"]) for b, e in watcher.events if e["event"] == "linear"]


class TestWhatGoesWrong:
    def test_an_engine_that_cannot_leaves_its_reason(
        self, shifted_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In place of experiments; the verdict is what it was."""

        def refuse(engine: HfEngine, layer: str, x_MK: object) -> Product:
            raise BackendError(f"{layer} cannot be run by itself", "hint")

        monkeypatch.setattr(HfEngine, "multiply", refuse)
        report = run(asked(shifted_model, "sim-gptq", experiments="all"), tmp_path / "run")
        (only,) = result(report, "sim-gptq").experiments
        assert (only.name, only.evidence) == ("not-run", (f"not all were made: {DOWN} cannot be run by itself",))
        assert result(report, "sim-gptq").status == "overflow"

    def test_a_worker_that_ends_early_leaves_what_there_was(
        self, shifted_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The backend has not failed: its captures are whole."""

        def cut_short(load: Load, listen: Listener, follow_up: FollowUp | None = None) -> list[Outcome]:
            def none(outcomes: Sequence[Outcome]) -> list[AnyJob]:
                if follow_up is not None:
                    follow_up(outcomes)
                return []

            outcomes = run_here(load, listen, none)
            for outcome in outcomes:
                outcome.further_failure = "timed out after 9 s"
            return outcomes

        monkeypatch.setattr(capture_all, "run_load", cut_short)
        report = run(asked(shifted_model, "sim-gptq", experiments="all"), tmp_path / "run")
        (only,) = result(report, "sim-gptq").experiments
        assert only.evidence == ("not all were made: timed out after 9 s",)
        assert report.skipped_backends == ()

    def test_too_large_tensors_are_not_kept(
        self, shifted_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gptq_diff.session.experiments_store.MOST_BYTES", 1000)
        run(asked(shifted_model, "sim-gptq", experiments="all"), tmp_path / "run")
        kept = [p.suffix for p in (tmp_path / "run" / "experiments").rglob("*.*") if p.is_file()]
        assert set(kept) == {".json"}


class TestAgain:
    @pytest.fixture(autouse=True)
    def in_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(live_again, "run_load", run_here)

    def test_a_finished_run_gets_the_same_experiments(self, shifted_model: Path, tmp_path: Path) -> None:
        """As if it had been asked for them at first; a second time they are made anew."""
        at_first = run(asked(shifted_model, "sim-gptq", experiments="all"), tmp_path / "first")
        run(asked(shifted_model, "sim-gptq"), tmp_path / "run")
        said: list[str] = []
        for _ in range(2):
            later = compare_again(
                tmp_path / "run", None, None, allow_skip=False, say=said.append, judging=False, live=Again("all")
            )
            assert [r.experiments for r in later.results] == [r.experiments for r in at_first.results]
        assert sorted(said[:2]) == [f"starting transformers once more for {name}" for name in ("hf-fp32", "sim-gptq")]

    def test_backends_can_be_named(self, shifted_model: Path, tmp_path: Path) -> None:
        """Then the others keep what they have."""
        run(asked(shifted_model, "sim-gptq"), tmp_path / "run")
        how = Again("all", "sim-gptq")
        report = compare_again(tmp_path / "run", None, None, allow_skip=False, say=print, judging=False, live=how)
        assert [r.backend for r in report.results if r.experiments] == ["sim-gptq"]

    def test_no_interpreter_comes_from_the_run(
        self, shifted_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """run.json may be anybody's."""
        run(asked(shifted_model, "sim-gptq"), tmp_path / "run")
        file = tmp_path / "run" / "run.json"
        record = json.loads(file.read_text())
        for backend in record["backends"]:
            backend["python"] = "/somebody/elses/python"
        file.write_text(json.dumps(record))
        loads: list[Load] = []

        def noted(load: Load, listen: Listener, follow_up: FollowUp | None = None) -> list[Outcome]:
            loads.append(load)
            return run_here(load, listen, follow_up)

        monkeypatch.setattr(live_again, "run_load", noted)
        compare_again(tmp_path / "run", None, None, allow_skip=False, say=print, judging=False, live=Again("all"))
        assert loads and all("somebody" not in str(load.python) for load in loads)


class TestChoice:
    def test_the_first_bad_call_of_every_prompt_up_to_a_few(self) -> None:
        """The others are told that they were not looked at."""
        judged = {
            ("b", f"p{i}"): [judgement("a"), judgement("c", "overflow", index=1), judgement("d", "diverged", index=2)]
            for i in range(MOST_PROMPTS + 1)
        }
        found = chosen(judged, "auto")
        assert [c.judgement.layer for c in found] == ["c"] * (MOST_PROMPTS + 1)
        assert [bool(c.why_not) for c in found] == [False] * MOST_PROMPTS + [True]

    @pytest.mark.parametrize("changes", [{"path": "all-reduce", "part": "all-reduce"}, {"part": "1"}])
    def test_what_cannot_be_run_alone_is_not_chosen(self, changes: dict[str, str]) -> None:
        """A sum over ranks is no kernel's; a rank's share is nobody's whole linear."""
        (only,) = chosen({("b", "p"): [judgement("a", "diverged", **changes)]}, "auto")
        assert only.why_not

    def test_of_sound_backends_the_nearest_call_is_taken_when_all_are_asked_for(self) -> None:
        judged = {("b", "p1"): [judgement("a", excess=0.1)], ("b", "p2"): [judgement("a", excess=0.2), judgement("c")]}
        assert chosen(judged, "auto") == []
        (only,) = chosen(judged, "all")
        assert (only.key, only.judgement.layer) == (("b", "p2"), "c")


def finding(cause: str, layer: str | None = "a", confidence: float = 0.5) -> Finding:
    return Finding(cause, confidence, (f"says {cause}",), layer)


def experiment(*found: Finding) -> list[Experiment]:
    return [Experiment("repeats", "a", 0, "did", {}, ("so",), f) for f in found]


class TestMerging:
    def test_a_cause_found_twice_is_told_once(self) -> None:
        """With both kinds of evidence and the higher confidence."""
        (only,) = merged((finding("bias"),), experiment(finding("bias", confidence=0.9)))
        assert only.evidence == ("says bias", "on the live kernel: says bias")
        assert only.confidence == 0.9

    def test_a_new_cause_stands_among_its_layers_own_and_before_unknown(self) -> None:
        """What is known comes first; noise of no layer last."""
        before = (finding("dtype"), finding("unknown"), finding("bias", "z"))
        found = merged(before, experiment(finding("split-k-noise", None, 0.8), finding("row-path")))
        assert [f.cause for f in found] == ["dtype", "row-path", "unknown", "bias", "split-k-noise"]


def test_a_load_without_concerned_backends_has_no_follow_up(tmp_path: Path) -> None:
    """So that its worker does not wait for anything."""
    live = live_load.Live(None, "auto", "hf-fp32", None, None)  # type: ignore[arg-type]
    assert live.of_load([Backend("sim-gptq", "transformers", "sim-gptq", "float16", "python")], ["p1"]) is None
    assert live.of_load([Backend("vllm", "vllm", "as-chosen", "float16", "python")], ["p1"]) is not None
    released = "vllm==0.20.2:exllama"
    assert live.of_load([Backend(released, "transformers", released, "float16", "python")], ["p1"]) is not None
