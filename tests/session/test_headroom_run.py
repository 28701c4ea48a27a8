"""Headroom in a whole run: beside the judgements on disk, in results, over the prompt set, and kept when tensors go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.dequant import unscaled_codes
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.compare import freed
from gptq_diff.diagnose.headroom import Nearest
from gptq_diff.errors import CaptureError
from gptq_diff.records import Headroom, Report
from gptq_diff.report.json_report import read_report, to_json
from gptq_diff.session import headroom_run
from gptq_diff.session.again import compare_again
from gptq_diff.session.asked import RunRecord
from gptq_diff.session.finished import finished_captures
from gptq_diff.session.headroom_file import headroom_file, nearest_of_all, read_headroom
from gptq_diff.session.sweep import Lengths
from tests.engines.fake_gpu import FakeGpu
from tests.session.in_process import FIRST, SECOND, asked, result, run

OVERFLOWS = "model.layers.1.mlp.down_proj"
CHANNEL = 170
"""The tiny model's massive channel (gptq_diff.models.random_models)."""
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(shifted_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The shifted tiny model, two prompts, on the simulators."""
    out = tmp_path_factory.mktemp("headroom") / "run"
    with pytest.MonkeyPatch.context() as patch:
        from gptq_diff.session import capture_all
        from tests.session.in_process import run_here

        patch.setattr(capture_all, "run_load", run_here)
        return out, run(asked(shifted_model, "hf-fp16,sim-gptq,sim-reconstruct", (FIRST, SECOND), capture="full"), out)


def of(report: Report, backend: str, arithmetic: str) -> Headroom:
    return next(row for row in report.headroom if (row.backend, row.arithmetic) == (backend, arithmetic))


def test_the_layer_that_breaks_has_none_left(finished: tuple[Path, Report]) -> None:
    """On the fast path it is negative there and told with the massive channel; float32 sums have bits left."""
    _, report = finished
    assert result(report, "sim-gptq").headroom_bits[OVERFLOWS] < 0
    assert result(report, "hf-fp16").headroom_bits[OVERFLOWS] > 8
    assert result(report, "sim-reconstruct").headroom_bits[OVERFLOWS] > 8
    row = of(report, "sim-gptq", "lane")
    assert row.ran
    assert (row.layer, row.channel) == (OVERFLOWS, CHANNEL)
    assert row.bits == pytest.approx(np.log2(65504 / abs(row.value)), abs=1e-3)
    assert row.weight == int(row.weight)  # a code, not scaled
    assert len(result(report, "hf-fp16").headroom_bits) == 14


def test_the_path_that_ran_is_counted(finished: tuple[Path, Report]) -> None:
    """A long prompt is reconstructed, so only its decode steps have lanes and only its prefill an accumulator."""
    root, _ = finished
    rows = read_headroom(headroom_file(RunDir(root), ("sim-gptq", "p2")))[OVERFLOWS]
    steps = {row.arithmetic: row.step for row in rows if row.arithmetic != "result"}
    assert steps == {"accumulator": 0, "lane": 1, "block": 1}


def test_the_reference_tells_of_other_kernels(finished: tuple[Path, Report]) -> None:
    """Its own inputs on every kernel: the lanes overflow, the accumulator does not; none of it ran."""
    root, report = finished
    assert not any(row.ran for row in report.headroom if row.backend == "hf-fp32")
    assert of(report, "hf-fp32", "lane").bits < 0 < of(report, "hf-fp32", "accumulator").bits
    assert (of(report, "hf-fp32", "lane").layer, of(report, "hf-fp32", "lane").channel) == (OVERFLOWS, CHANNEL)
    assert result(report, "hf-fp32").headroom_bits[OVERFLOWS] > 8
    rows = read_headroom(headroom_file(RunDir(root), ("hf-fp32", "p2")))[OVERFLOWS]
    assert {row.arithmetic for row in rows} == {"lane", "block", "accumulator", "result"}


def test_the_told_sum_is_there(finished: tuple[Path, Report], shifted_model: Path) -> None:
    """Row, column and channel point into the captured x and the checkpoint's codes."""
    root, report = finished
    row = of(report, "hf-fp32", "lane")
    x_MK = RunDir(root).reader("hf-fp32", row.prompt).tensor(row.step, row.layer, "in").to(torch.float16)
    codes_KN = unscaled_codes(open_checkpoint(shifted_model).packed(row.layer))
    assert float(x_MK[row.row, row.channel]) == row.activation
    assert int(codes_KN[row.channel, row.column]) == row.weight
    word = row.channel // 8 * 8 + row.channel % 2
    lane = x_MK[row.row, word : word + 8 : 2].double() * codes_KN[word : word + 8 : 2, row.column]
    assert row.value in lane.cumsum(0).tolist()


def test_the_report_keeps_to_the_schema(finished: tuple[Path, Report]) -> None:
    """And reads back."""
    root, report = finished
    jsonschema.validate(json.loads(to_json(report)), SCHEMA)
    assert read_report(root / "report.json").headroom == report.headroom


@pytest.mark.usefixtures("here")
def test_headroom_outlives_the_tensors(shifted_model: Path, tmp_path: Path) -> None:
    """Comparing again after --capture stats gives the same figures, also without the checkpoint."""
    report = run(asked(shifted_model, "sim-gptq", capture="stats"), tmp_path / "run")
    again = compare_again(tmp_path / "run", None, None, allow_skip=False, say=lambda _: None)
    assert again.headroom == report.headroom
    assert [r.headroom_bits for r in again.results] == [r.headroom_bits for r in report.results]
    assert len(result(again, "hf-fp32").headroom_bits) == 14


@pytest.mark.usefixtures("here")
def test_freed_memory_goes_back_while_linears_are_judged_and_measured(
    shifted_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as there are linears where each is worth it, and never in so small a run otherwise; with one report."""
    done: list[int] = []
    monkeypatch.setattr(freed, "hand_back", lambda: done.append(1))
    never = run(asked(shifted_model, "hf-fp16"), tmp_path / "never")
    assert done == []
    monkeypatch.setattr(freed, "WORTH", 1)
    often = run(asked(shifted_model, "hf-fp16"), tmp_path / "often")
    assert len(done) >= 2 * 14
    assert often.headroom == never.headroom
    assert [r.first_bad for r in often.results] == [r.first_bad for r in never.results]


@pytest.mark.usefixtures("here")
def test_of_a_sweep_the_longest_prompt_is_measured(shifted_model: Path, tmp_path: Path) -> None:
    """It holds the rows of all others."""
    run(asked(shifted_model, "hf-fp16", sweep=Lengths(2, 4)), tmp_path / "run")
    files = sorted(path.name for path in (tmp_path / "run" / "diagnosed" / "hf-fp32").glob("*.headroom.json"))
    assert files == ["p1-t004.headroom.json"]


@pytest.mark.usefixtures("here")
def test_the_same_input_is_measured_once(shifted_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two backends whose inputs are the same to the bit share one measurement a linear, and its figures."""
    stacks: list[torch.Tensor] = []
    measured = headroom_run.measure

    def counted(x_MK: torch.Tensor, *rest: Any) -> dict[str, Nearest]:
        stacks.append(x_MK)
        return measured(x_MK, *rest)

    monkeypatch.setattr(headroom_run, "measure", counted)
    report = run(asked(shifted_model, "sim-exllama,sim-gptq"), tmp_path / "run")
    assert len(stacks) == 2 * 14
    assert result(report, "sim-exllama").headroom_bits == result(report, "sim-gptq").headroom_bits


def test_a_gpu_measures_the_same(finished: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs brought there, all sums made there: every capture's headroom is what the CPU found."""
    run_dir = RunDir(finished[0])
    record = RunRecord.from_json(run_dir.run())
    keys = finished_captures(record, run_dir)
    before = {key: read_headroom(headroom_file(run_dir, key)) for key in keys}
    written: dict[Any, Any] = {}
    fake, of_layer = FakeGpu(), headroom_run._of_layer  # in force in whichever thread works

    def there(device: torch.device, checkpoint: Checkpoint, specs: Any) -> Any:
        for spec in specs:
            with fake:
                linear = checkpoint.packed(spec.name).to("cuda")
            yield spec, linear

    def measured(*given: Any) -> Any:
        with fake:
            return of_layer(*given)

    monkeypatch.setattr(headroom_run, "linears_on", there)
    monkeypatch.setattr(headroom_run, "_of_layer", measured)
    monkeypatch.setattr(headroom_run, "AT_A_TIME", 1)  # the stand-in is not made for threads
    monkeypatch.setattr(headroom_run, "write_headroom", lambda path, rows: written.update({path: rows}))
    with open_checkpoint(Path(record.model.path)) as judge:
        judge.work_device = torch.device("cuda")
        headroom_run.measure_headroom(run_dir, record, keys, judge, judge)
    assert len(written) == len(keys)
    for key in keys:
        now = written[headroom_file(run_dir, key)]
        assert now.keys() == before[key].keys()
        for name, rows in before[key].items():
            assert [(h.arithmetic, h.ran) for h in now[name]] == [(h.arithmetic, h.ran) for h in rows]
            assert [h.bits for h in now[name]] == pytest.approx([h.bits for h in rows], abs=1e-3)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p1.headroom.json"
    path.write_text('{"a": [{"bits": 1}]}')
    with pytest.raises(CaptureError, match=r"p1\.headroom\.json is damaged"):
        read_headroom(path)


def test_the_smallest_over_prompts(finished: tuple[Path, Report]) -> None:
    """Of the same backend and arithmetic the smallest, whichever prompt comes first."""
    root, report = finished
    files = [read_headroom(headroom_file(RunDir(root), ("sim-gptq", p))) for p in ("p2", "p1")]
    (lane,) = (row for row in nearest_of_all(files) if row.arithmetic == "lane")
    assert lane.bits == of(report, "sim-gptq", "lane").bits
