"""`compare RUN`: judging a finished, moved, pruned or interrupted capture again."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import pytest

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.errors import CannotJudge, CaptureError, UsageError
from gptq_diff.exit_codes import exit_code
from gptq_diff.launch import Listener, Load, Outcome
from gptq_diff.records import Report
from gptq_diff.session import capture_all
from gptq_diff.session.again import compare_again
from tests.session.damage import damaged_copy
from tests.session.in_process import asked, result, run, run_here

pytestmark = pytest.mark.usefixtures("here")


class Again:
    """Runs a backend or two on a copy of a model, and compares the run again."""

    def __init__(self, tmp_path: Path) -> None:
        self.model = tmp_path / "model"
        self.root = tmp_path / "run"
        self.said: list[str] = []

    def run(self, source: Path, backends: str = "sim-exllama", **settings: object) -> Report:
        shutil.copytree(source, self.model)
        return run(asked(self.model, backends, **settings), self.root)

    def compare(self, model: Path | None = None, *, allow_skip: bool = False) -> Report:
        self.said.clear()
        given = str(model) if model is not None else None
        return compare_again(self.root, given, None, allow_skip=allow_skip, say=self.said.append)


@pytest.fixture
def again(tmp_path: Path) -> Again:
    return Again(tmp_path)


class TestWithTheCheckpoint:
    def test_the_same_verdict_comes_again(self, again: Again, shifted_model: Path) -> None:
        """Stored judgements are thrown away first, so all of them are new."""
        report = again.run(shifted_model)
        shutil.rmtree(again.root / "judged")
        assert again.compare() == report
        assert again.said == []

    def test_with_every_byte_hashed(self, again: Again, small_model: Path) -> None:
        """A run with --full-hash is recognised by a full hash."""
        again.run(small_model, "hf-fp16", full_hash=True)
        again.compare()
        assert again.said == []

    def test_what_was_left_out_keeps_its_judgement_and_is_counted(self, again: Again, shifted_model: Path) -> None:
        report = again.run(shifted_model, capture="stats")
        assert again.compare() == report
        assert again.said == ["60 of 68 kernel calls keep their stored judgement: their tensors were left out"]

    def test_one_that_lies_elsewhere(self, again: Again, shifted_model: Path, tmp_path: Path) -> None:
        """--model DIR: the fingerprint says that it is the same."""
        again.run(shifted_model)
        again.model.rename(tmp_path / "moved")
        assert again.compare(tmp_path / "moved").verdict.status == "overflow"
        assert again.said == []

    def test_another_one_is_refused(self, again: Again, shifted_model: Path, small_model: Path) -> None:
        again.run(shifted_model)
        with pytest.raises(UsageError, match="fingerprint differs"):
            again.compare(small_model)

    def test_a_reference_model_where_there_was_none(self, again: Again, small_model: Path) -> None:
        again.run(small_model, "hf-fp16")
        with pytest.raises(UsageError, match="no --reference-model"):
            compare_again(again.root, None, str(small_model), allow_skip=False, say=again.said.append)

    def test_both_checkpoints(self, small_model: Path, tmp_path: Path) -> None:
        """A damaged model and its sound reference are both found again, where they were and elsewhere."""
        damaged = damaged_copy(small_model, tmp_path / "damaged")
        root = tmp_path / "run"
        report = run(asked(damaged, "hf-fp16", reference_model=small_model), root)
        said: list[str] = []
        assert compare_again(root, None, None, allow_skip=False, say=said.append) == report
        damaged.rename(tmp_path / "moved")
        moved = str(tmp_path / "moved")
        assert compare_again(root, moved, str(small_model), allow_skip=False, say=said.append) == report
        assert said == []


class TestWithoutTheCheckpoint:
    def test_stored_judgements_are_used_and_said_so(self, again: Again, shifted_model: Path) -> None:
        """The whole report comes from the run directory, the texts too."""
        report = again.run(shifted_model)
        shutil.rmtree(again.model)
        assert again.compare() == report
        (said,) = again.said
        assert "what is stored is used" in said
        assert "is not here" in said

    def test_one_that_has_changed_is_not_judged_with(self, again: Again, small_model: Path) -> None:
        report = again.run(small_model, "hf-fp16")
        shutil.rmtree(again.model)
        damaged_copy(small_model, again.model)
        assert again.compare() == report
        assert "is another one than in this run" in again.said[0]

    def test_a_run_copied_to_another_place(self, again: Again, shifted_model: Path, tmp_path: Path) -> None:
        """Nothing in a run directory points to where it was."""
        report = again.run(shifted_model)
        shutil.rmtree(again.model)
        again.root.rename(tmp_path / "elsewhere")
        again.root = tmp_path / "elsewhere"
        assert again.compare() == report

    def test_without_judgements_there_is_no_verdict(self, again: Again, small_model: Path) -> None:
        """compared 0 of N, exit 3."""
        again.run(small_model, "hf-fp16")
        shutil.rmtree(again.model)
        shutil.rmtree(again.root / "judged")
        report = again.compare()
        assert report.verdict.status == "incomplete"
        assert "compared 0 of 14" in report.verdict.summary
        assert exit_code(report) == 3


class TestRepeats:
    def test_what_repeats_said_outlives_their_tensors(
        self, again: Again, small_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A backend that gave other outputs for the same inputs stays nondeterministic after --capture stats."""

        def unsteady(load: Load, listen: Listener, follow_up: object = None) -> list[Outcome]:
            outcomes = run_here(load, listen)
            if load.spec.jobs[0].backend == "hf-fp16":
                nudge(Path(load.spec.jobs[1].out))
            return outcomes

        monkeypatch.setattr(capture_all, "run_load", unsteady)
        report = again.run(small_model, "hf-fp16", repeats=2, capture="stats")
        found = result(report, "hf-fp16")
        assert (found.status, found.findings[0].cause) == ("nondeterministic", "race-or-uninitialised")
        assert exit_code(report) == 1
        assert result(report, "hf-fp32").status == "agree"
        assert again.compare() == report


def nudge(capture: Path) -> None:
    """Double every output of one layer in the prefill, as a race would."""
    from safetensors.torch import load_file, save_file

    for block in capture.glob("block-*.safetensors"):
        tensors = load_file(block)
        tensors["0/model.layers.0.mlp.up_proj/out"] *= 2
        save_file(tensors, block)


class TestInterrupted:
    @pytest.fixture
    def cut_short(self, again: Again, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> Again:
        """hf-fp32 ran, hf-fp16 finished its capture, then Ctrl-C came before sim-gptq's."""

        def load(load: Load, listen: Listener, follow_up: object = None) -> list[Outcome]:
            if load.spec.jobs[0].backend != "hf-fp32":
                shutil.copytree(again.root / "captures" / "hf-fp32", again.root / "captures" / "hf-fp16")
                (again.root / "captures" / "sim-gptq" / "p1").mkdir(parents=True)
                raise KeyboardInterrupt
            return run_here(load, listen)

        monkeypatch.setattr(capture_all, "run_load", load)
        with pytest.raises(KeyboardInterrupt):
            again.run(small_model, "hf-fp16,sim-gptq")
        return again

    def test_what_is_whole_is_judged_and_the_rest_named(self, cut_short: Again) -> None:
        for _ in range(2):  # a second time just the same
            report = cut_short.compare()
            assert "interrupted" in cut_short.said[0]
            assert len(report.results) == 2
            assert {r.layers.compared for r in report.results} == {14}
            assert [(s.backend, s.reason) for s in report.skipped_backends] == [
                ("sim-gptq", "the run was interrupted when 0 of its 1 captures were whole")
            ]
            assert "Not in the table: <b>sim-gptq</b>" in (cut_short.root / "report.html").read_text()
            assert exit_code(report) == 3

    def test_it_can_be_allowed(self, cut_short: Again) -> None:
        assert exit_code(cut_short.compare(allow_skip=True)) == 0

    def test_one_that_was_killed_is_the_same(self, cut_short: Again) -> None:
        """SIGKILL leaves run.json at "running" and no lock."""
        file = cut_short.root / "run.json"
        file.write_text(file.read_text().replace('"interrupted"', '"running"'))
        assert len(cut_short.compare().results) == 2
        assert json.loads(file.read_text())["state"] == "interrupted"

    def test_one_that_still_runs_is_left_alone(self, cut_short: Again) -> None:
        with (cut_short.root / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(UsageError, match="has not ended"):
                cut_short.compare()


class TestDamagedRuns:
    def test_no_run_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"no run\.json"):
            compare_again(tmp_path, None, None, allow_skip=False, say=print)

    @pytest.mark.parametrize("text", ["[]", '{"schema_version": 1}', '{"model": 3}', "null"])
    def test_a_run_json_that_is_none(self, again: Again, small_model: Path, text: str) -> None:
        again.run(small_model, "hf-fp16")
        (again.root / "run.json").write_text(text)
        with pytest.raises(CannotJudge, match=r"run\.json is damaged"):
            again.compare()

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            *((f, t) for f in ("prompts.json", "captures/hf-fp16/p1/manifest.json") for t in (None, "{", "[3]\n")),
            *(("captures/hf-fp16/p1/stats.jsonl", t) for t in (None, "{")),
        ],
    )
    def test_damaged_files_are_named(self, again: Again, small_model: Path, file: str, text: str | None) -> None:
        """Missing, cut short, or something else: a sentence with the file's name."""
        again.run(small_model, "hf-fp16")
        place = again.root / file
        if text is None:
            place.unlink()
        else:
            place.write_text(text)
        with pytest.raises(CannotJudge, match=place.name.split(".")[0]):
            again.compare()

    @pytest.mark.parametrize("line", ["{", "[]", '{"layer": "x"}', "\udcff"])
    def test_damaged_judgements_are_named_with_their_line(self, again: Again, small_model: Path, line: str) -> None:
        again.run(small_model, "hf-fp16")
        place = RunDir(again.root).judged("hf-fp16", "p1")
        place.write_bytes(place.read_bytes() + line.encode("utf-8", "surrogateescape") + b"\n")
        with pytest.raises(CaptureError, match=r"p1\.jsonl"):
            again.compare()
