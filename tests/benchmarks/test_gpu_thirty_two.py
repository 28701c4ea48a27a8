"""The measurement of the 32B's shape on a GPU: its table, and what it reads off a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.document import PAGE, filled
from benchmarks.gpu.thirty_two.__main__ import PARTS, public, said
from benchmarks.gpu.thirty_two.prompt import Found, token_ids
from benchmarks.gpu.thirty_two.table import Row, by_size, picture, read, rows, shared, table

CEILINGS = {"gpu": "a GPU", "launches_per_s": 200_000, "device_to_host_bytes_per_s": 50e9,
            "host_to_device_bytes_per_s": 50e9}  # fmt: skip
TAP = {
    "rows": 37, "route": "marlin", "written_bytes": 500_000_000, "versions": {"vllm": "0.20.2", "torch": "2.11"},
    "seconds": {
        "bare": 0.030, "followed": 0.031, "statistics": 0.033, "tensors": 0.042, "hooks, copied to the CPU": 0.3,
        "tensors to disk": 0.05, "tensors to disk, written afterwards": 0.5,
    },
    "times": {"bare": [0.030], "statistics": [0.033], "tensors": [0.042]},
    "work": {
        "bare": {"launches": 1000, "gpu_busy_seconds": 0.01},
        "statistics": {"launches": 1300, "gpu_busy_seconds": 0.01},
        "tensors": {"launches": 1400, "gpu_busy_seconds": 0.01},
    },
}  # fmt: skip


def row(found: list[Row], what: str) -> Row:
    return next(one for one in found if one.what.strip().startswith(what))


def test_every_figure_is_told_as_a_multiple_of_what_the_machine_allows() -> None:
    """Launches by their own cost, copies by PCIe's, judging by the bytes that have to be brought."""
    judge = {"packed_bytes": 18e9, "by_backend": {"gptq-marlin": {"seconds": 2.0, "captured_bytes": 1e9}}}
    found = rows({"ceilings": CEILINGS, "tap": TAP, "judge": judge})
    bare = row(found, "prefill of 37 tokens")
    assert bare.floor == pytest.approx(1000 / 200_000)
    assert row(found, "with the tap, statistics").verdict == "ok"
    tensors = row(found, "with the tap, tensors")
    assert tensors.verdict == "MISSED (1.08 of it)"
    assert tensors.floor == pytest.approx((0.030 + 400 / 200_000) / 0.030)
    assert row(found, "tensors to disk, written").floor == pytest.approx(0.01)
    assert row(found, "local errors, gptq-marlin").floor == pytest.approx(19e9 / 50e9)


def test_longer_prompts_stand_beside_what_the_bus_allows() -> None:
    """Statistics have to be cheap there too; tensors cannot be faster than PCIe brings them."""
    lengths = {"by_length": {"370": {"bare": 0.04, "statistics": 0.05, "tensors": 0.12}}}
    found = rows({"ceilings": CEILINGS, "tap": TAP, "lengths": lengths})[-3:]
    assert [one.what.strip() for one in found] == [
        "prefill of 370 tokens, bare", "with the tap, statistics", "with the tap, tensors",
    ]  # fmt: skip
    assert found[1].verdict == "MISSED (1.09 of it)"
    assert (found[2].value, found[2].floor) == (pytest.approx(3.0), pytest.approx(5e9 / 50e9 / 0.04))


def test_a_run_is_held_against_the_engines_by_themselves() -> None:
    """1.2 times their sum is what it may take; without them nothing is required."""
    stages = [{"stage": "judge_run", "seconds": 3.0, "behind": True}, {"stage": "judge_run", "seconds": 4.0}]
    run = {"wall_seconds": 250.0, "stages": stages, "planted": 5,
           "planted_linear_named": False, "failing": ["vllm-exllama"], "verdict": "It broke."}  # fmt: skip
    bare = {"wall_sum": 200.0, "engines": {"vllm marlin": {"wall_seconds": 90.0}}}
    found = rows({"run": run, "bare": bare})
    assert row(found, "gptq-diff run").verdict == "MISSED (1.04 of it)"
    assert row(rows({"run": run}), "gptq-diff run").verdict == ""
    assert [one.what for one in found if one.value in (3.0, 4.0)] == ["  judge_run, behind", "  judge_run"]
    assert "NOT what was named" in table({"run": run})


def test_like_for_like_and_by_default_are_both_told() -> None:
    """Each against the bare engines, whose own figures stand there once."""
    run = {"wall_seconds": 100.0, "planted": 5}
    bare = {"wall_sum": 70.0, "engines": {"vllm marlin": {"wall_seconds": 25.0}}}
    found = rows({"run": run, "run-plain": {**run, "wall_seconds": 80.0}, "bare": bare})
    told = [(one.part, one.verdict) for one in found if one.what.startswith("gptq-diff run")]
    assert told == [("run-plain", "ok"), ("run", "MISSED (1.19 of it)")]
    assert sum(one.what.startswith("bare:") for one in found) == 1


def test_a_call_stands_beside_the_launch_of_its_copy() -> None:
    added = {"bare": 0.0, "looked at": 5.0, "tapped by torch": 9.0, "cloned": 20.0}
    found = rows({"calls": {"added": added, "copies": {"one_launch": 6.0, "two clones": 11.0}}})
    assert [(one.value, one.floor) for one in found] == [(5.0, 6.0), (9.0, 6.0), (20.0, 6.0)]


def test_a_tap_is_told_by_rounds_by_medians_and_by_the_quickest() -> None:
    """On a busy machine they differ, and a reader is to see it; what is required is asked of the rounds' own ratios."""
    seconds = {"bare": 5.0, "statistics": 5.5, "tensors": 6.0}
    times = {
        "bare": [2.0, 5.0, 8.0], "statistics": [3.0, 6.0, 8.0], "tensors": [3.0, 6.0, 10.0],
        "tensors, another length": [4.0, 7.0, 16.0],
    }  # fmt: skip
    found = rows({"tap": {"seconds": seconds, "times": times, "route": "marlin", "rows": 37, "written_bytes": 1}})
    assert [one.value for one in found] == [1.2, 1.1, 1.5, 1.25, 1.2, 1.5, 2.0]
    assert [one.verdict for one in found if one.verdict] == ["MISSED (1.04 of it)", "ok"]
    assert found[-1].what.strip() == "of a length that comes for the first time"


def test_a_prefill_shared_among_gpus_has_a_table_of_its_own() -> None:
    """A line for every number of ranks, misses told."""
    after = {"tensors, written afterwards by the ranks": 0.3, "tensors, put together afterwards": 1.5}
    one = {"ranks": 2, "load_seconds": 30, "seconds": {"bare": 0.05, "tensors": 0.06, **after}}
    quick = {"bare": [0.05, 0.1], "tensors": [0.06, 0.12]}
    parts = {
        "parts": {"date": "2026-01-02", "gpus": "two cards", "blocks": 64, "rows": 37},
        "ranks2-tap": {**one, "times": quick, "peak_gpu_bytes": 2**31},
        "ranks4-tap": {**one, "ranks": 4, "times": {**quick, "tensors": [0.1, 0.19]}, "peak_gpu_bytes": 2**32},
        "ranks4-run": {"wall_seconds": 1},
    }
    lines = shared(parts).splitlines()
    said = "Seconds, medians; the ratio is the median of the rounds' own."
    assert lines[0] == f"Measured 2026-01-02 on two cards; 64 blocks, 37 tokens, Marlin. {said}"
    assert lines.pop() == "`gptq-diff run` on 4 GPUs: 1 s."
    assert lines.pop() == ""
    assert lines[-2] == "| 2 | 30 | 0.05 | 0.06 | 1.20 | <= 1.3 | 0.3 | 1.5 | 2.0 GiB |"
    assert lines[-1] == "| 4 | 30 | 0.05 | 0.06 | 1.95 | <= 1.3, MISSED (1.50 of it) | 0.3 | 1.5 | 4.0 GiB |"


def test_sizes_become_a_picture(tmp_path: Path) -> None:
    """One line a way of capturing, a point a size; sizes without a tap are left out."""
    seconds = {"bare": 0.03, "statistics": 0.033, "tensors": 0.04, "hooks, clones on the GPU": 0.05}
    for folder, tap in (("blocks-8", {"seconds": seconds}), ("blocks-16", {"rows": 37})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tap.json").write_text(json.dumps(tap))
    sizes = by_size(tmp_path, {"parts": {"blocks": 64}, "tap": {"seconds": seconds}})
    assert sorted(sizes) == [8, 64]
    drawn = picture(sizes)
    assert drawn.count("<polyline") == 4
    assert drawn.count("<circle") == 8


def test_no_directory_of_the_machine_is_in_what_is_kept() -> None:
    """Neither the model's nor the runs', nor the interpreter's."""
    import sys

    class Here:
        model, place = Path("/dev/shm/shape32b-64-21"), Path("/somewhere/place")

    here: Any = Here()
    text = f'"/dev/shm/shape32b-64-21", "/somewhere/place/run", "{sys.prefix}/bin/python", "{Path.cwd()}/x"'
    kept = public(here, text)
    assert kept == '"synthetic-qwen2.5-32b", "RUNS/run", "VENV/bin/python", "./x"'


def test_parts_that_were_not_run_have_no_rows() -> None:
    assert rows({}) == []
    assert rows({"tap": {"rows": 37}, "run": {"planted": 3}, "judge": {}}) == []


def test_the_page_takes_the_table(tmp_path: Path) -> None:
    """docs/performance.md has the marks; what a part has found so far is on disk after every addition."""
    found = Found(tmp_path / "ceilings.json", what="ceilings")
    found.add(**CEILINGS)
    (tmp_path / "tap.json").write_text(json.dumps(TAP))
    (tmp_path / "run-report.json").write_text("{}")
    parts = read(tmp_path)
    assert sorted(parts) == ["ceilings", "tap"]
    assert "| `tap` |" in filled(PAGE.read_text(encoding="utf-8"), "gpu", table(parts))


def result(name: str, status: str, layer: str | None) -> dict[str, Any]:
    bad = None if layer is None else {"layer": layer}
    return {
        "backend": name, "status": status, "first_bad": bad, "layers": {"compared": 448}, "seconds": {},
        "findings": [{"cause": "accumulator-overflow"}], "workarounds": [],
        "peak_private_bytes": 1, "peak_gpu_bytes": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "named"), [("model.layers.9.mlp.down_proj", True), ("model.layers.8.mlp.down_proj", False), (None, False)]
)
def test_what_was_planted_has_to_be_named_exactly(layer: str | None, named: bool) -> None:
    """The first layer of every failing backend, and at least one must fail."""
    bad = result("vllm-exllama", "overflow" if layer else "agree", layer)
    raw = {"results": [result("hf-fp32", "agree", None), bad], "verdict": {"summary": "s"}, "skipped_backends": []}
    assert said(raw, 9)["planted_linear_named"] is named


def test_ids_lie_within_the_vocabulary() -> None:
    for vocabulary in (512, 152064):
        ids = token_ids(200, vocabulary)
        assert len(ids) == 200
        assert 0 <= min(ids) <= max(ids) < vocabulary


def test_every_part_is_described() -> None:
    from benchmarks.gpu.thirty_two import __main__ as script

    assert all(f"\n{part} " in (script.__doc__ or "") for part in PARTS)


@pytest.mark.parametrize("place", sorted(Path("benchmarks/results/gpu").glob("*thirty-two*")), ids=lambda p: p.name)
def test_what_was_measured_once_can_still_be_read(place: Path) -> None:
    """Every directory of results that is kept, from every tap that there was."""
    assert table(read(place))
    assert shared(read(place))
