"""The benchmarks' own arithmetic and output; no time is asserted, since a busy machine is no defect."""

from __future__ import annotations

import json
import platform

import pytest

from benchmarks import document, long_and_many, run, simulator, startup
from benchmarks.figure import Figure, ratio, side_by_side


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("a", 3.5, "G/s", least=3.0), "ok"),
        (Figure("a", 1.5, "G/s", least=3.0), "MISSED (0.50 of it)"),
        (Figure("a", 1.1, "of bare", most=1.15), "ok"),
        (Figure("a", 3.0, "of bare", most=1.5), "MISSED (2.00 of it)"),
        (Figure("a", 3.0, "ms"), ""),
    ],
)
def test_a_figure_says_whether_it_meets_what_is_required(figure: Figure, verdict: str) -> None:
    assert figure.verdict == verdict


def test_every_second_round_runs_backwards_after_one_call_that_is_not_counted() -> None:
    calls: list[str] = []
    times = side_by_side({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "ab" + "abbaab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert ratio({"slow": [2.0, 30.0, 4.0], "bare": [1.0, 10.0, 4.0]}, "slow", "bare") == 2.0


def test_a_missed_requirement_is_printed_and_written_and_ends_with_0(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")  # as run.main would set it, and undone afterwards
    monkeypatch.setattr(startup, "figures", lambda: [Figure("  slow start", 0.81234, "s", most=0.4, note="why")])
    run.main(["--only", "startup", "--out", str(tmp_path / "cpu.json")])
    printed = capsys.readouterr().out
    assert "MISSED (2.03 of it)" in printed
    assert "1 requirements missed" in printed
    written = json.loads((tmp_path / "cpu.json").read_text())
    figure = written["figures"]["startup"][0]
    assert (figure["what"], figure["value"], figure["verdict"]) == ("slow start", 0.8123, "MISSED (2.03 of it)")


def test_results_do_not_name_the_machine() -> None:
    assert platform.node() not in run.machine().values()


def test_the_weight_that_the_simulator_is_timed_on_has_smollm2s_shape() -> None:
    weight = simulator.weight(3, simulator.np.random.default_rng(0))
    assert (weight.rows, weight.columns, weight.bits) == (1536, 576, 3)


ROW = {
    "machine": {
        "date": "2026-01-02", "cpu": "a CPU", "cores": 2, "memory_gib": 8.0, "python": "3.11.2", "torch": "2.13.0",
        "numba": "0.68.1", "omp_wait_policy": "default", "load_average_before": 0.1, "load_average_after": 2.0,
    },
    "prompts": 1, "tokens": 4000, "wall_seconds": 200.5, "judged_seconds": 120.2, "cpu_seconds": 300.0,
    "load_seconds": {"a": 3.0, "b": 3.0}, "generate_seconds": {"a": 20.1, "b": 12.0}, "worker_bytes": 2**30,
    "parent_bytes": 2**31, "kept_bytes": 0, "left_out": ["2 of 3 captures"], "status": {}, "compared": [210],
}  # fmt: skip


def test_long_and_many_are_measured_one_by_one(tmp_path) -> None:
    """What one run measured is written beside what is there of the other, each with what it was measured on."""
    out = tmp_path / "results" / "long_and_many.json"
    long_and_many.add(out, "long", ROW)
    table = document.long_and_many(json.loads(out.read_text()))
    assert table.startswith("4000 tokens: Measured 2026-01-02 on a CPU")
    assert "| 1 | 4000 | 200.5 | 3.0 | 20.1, 12.0 | 120.2 | 1.00 | 2.00 | 0.00 | 2 of 3 captures |\n" in table
    busy = {
        **ROW,
        "prompts": 200,
        "tokens": 2575,
        "left_out": [],
        "machine": {**ROW["machine"], "load_average_before": 7.0},
    }
    long_and_many.add(out, "many", busy)
    table = document.long_and_many(json.loads(out.read_text()))
    assert [line.split(" | ")[0] for line in table.splitlines() if line[-1:] == "|"][2:] == ["| 200", "| 1"]
    assert "2575 tokens: Measured" in table and "Load average 7.0 before" in table and "nothing |" in table
    long_and_many.add(out, "many", {**busy, "tokens": 5})
    assert json.loads(out.read_text()) == {"long": ROW, "many": {**busy, "tokens": 5}}


def test_the_page_takes_new_figures_between_its_marks_and_nowhere_else() -> None:
    page = "before\n<!-- cpu -->\nold\n<!-- /cpu -->\nafter\n"
    assert document.filled(page, "cpu", "new\n") == "before\n<!-- cpu -->\nnew\n<!-- /cpu -->\nafter\n"
    with pytest.raises(ValueError, match="no marks"):
        document.filled(page, "memory", "new\n")
