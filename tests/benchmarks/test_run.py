"""The benchmarks' own arithmetic and output; no time is asserted, since a busy machine is no defect."""

from __future__ import annotations

import json
import platform

import pytest

from benchmarks import document, run, simulator, startup
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


def test_the_page_takes_new_figures_between_its_marks_and_nowhere_else() -> None:
    page = "before\n<!-- cpu -->\nold\n<!-- /cpu -->\nafter\n"
    assert document.filled(page, "cpu", "new\n") == "before\n<!-- cpu -->\nnew\n<!-- /cpu -->\nafter\n"
    with pytest.raises(ValueError, match="no marks"):
        document.filled(page, "memory", "new\n")
