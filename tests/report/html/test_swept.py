"""Pictures of sweeps and experiments: which results are pictured, and with what numbers."""

from __future__ import annotations

from dataclasses import replace

from gptq_diff.records import Experiment, Report, RowRange, Sweep, SweepRange
from gptq_diff.report.html import Parts, render_html
from gptq_diff.report.html.swept import MOST_ASKED, asked, asked_data, lengths_data, swept_prompts
from tests.report.build import LAYERS, a_report, a_result
from tests.report.html.test_page import data_of, words

ROWS = Experiment(
    "row-sweep", LAYERS[5], 0, "one captured row, 1 to 64 times in one call", {"path_border": 50}, ("it flips",), None,
    (RowRange(1, 50, "exllama-fast", "overflow", 2, None), RowRange(51, 64, "exllama-reconstruct", "ok", 0, 7e-4)),
)  # fmt: skip
FIGURES = {"repeats": 20.0, "other_bits": 19.0, "bad": None, "share_of_two_roundings": 0.25}
REPEATS = Experiment("repeats", LAYERS[5], 0, "the captured call 20 times", FIGURES, ("19 of 19",))
ZERO = Experiment("zero-input", LAYERS[5], 0, "x = 0", {}, ("zero gives zero",))


def report(*experiments: Experiment, backends: tuple[str, ...] = ("sim-exllama",)) -> Report:
    results = [replace(a_result("overflow", b, p), experiments=experiments) for b in backends for p in ("a", "b")]
    return a_report(a_result("agree", "hf-fp32"), *results)


def test_the_first_prompt_of_each_backend_is_pictured() -> None:
    """As the sentences below tell the first in full; backends beyond a dozen are told in sentences alone."""
    found = asked(report(ROWS, REPEATS, ZERO, backends=("x", "y")))
    assert [one.who for one in found] == ["x, prompt a", "y, prompt a"]
    many = asked(report(ROWS, backends=tuple(f"b{i}" for i in range(MOST_ASKED + 5))))
    assert len(many) == MOST_ASKED


def test_only_what_makes_a_picture() -> None:
    """An experiment without ranges or repeats has none, and a backend without either no place."""
    assert asked(report(ZERO)) == ()
    assert asked(report(replace(ROWS, ranges=()), ZERO)) == ()
    (one,) = asked(report(replace(ROWS, ranges=()), REPEATS))
    assert (one.rows, one.repeats) == (None, REPEATS)
    (one,) = asked(report(ROWS, replace(REPEATS, figures={"repeats": 0})))
    assert (one.rows, one.repeats) == (ROWS, None)


def test_the_numbers_of_rows_and_repeats() -> None:
    """Range by range what ran and what came of it; a figure that was not counted counts as none."""
    (one,) = asked(report(ROWS, REPEATS))
    data = asked_data(one)
    assert [(r["first"], r["last"], r["path"], r["nonfinite"], r["error"]) for r in data["rows"]] == [
        (1, 50, "exllama-fast", 2, None), (51, 64, "exllama-reconstruct", 0, 7e-4),
    ]  # fmt: skip
    assert data["repeats"] == {"repeats": 20.0, "bad": 0, "other": 19.0, "spread": 0.25}


def test_an_infinite_figure_does_not_end_the_page() -> None:
    """JSON has no infinity; the picture leaves it out."""
    ranges = (replace(ROWS.ranges[1], local_l2_rel=float("inf")),)
    figures = {**FIGURES, "share_of_two_roundings": float("nan")}
    shown = report(replace(ROWS, ranges=ranges), replace(REPEATS, figures=figures))
    (one,) = data_of(render_html(Parts(shown, {})))["asked"]
    assert one["rows"][0]["error"] is None
    assert one["repeats"]["spread"] is None


def test_every_swept_prompt_has_a_picture_with_a_strip_for_each_backend() -> None:
    """Over all lengths that any of them was asked."""
    sweeps = (
        Sweep("hf-fp32", "p1", 1, 64, 1, (SweepRange(1, 64, "agree", None),)),
        Sweep("b", "p1", 2, 60, 2, (SweepRange(2, 50, "overflow", LAYERS[5]), SweepRange(52, 60, "agree", None))),
        Sweep("hf-fp32", "p2", 1, 3, 1, ()),
    )
    swept = replace(report(), sweeps=sweeps)
    assert swept_prompts(swept) == ("p1", "p2")
    first, second = lengths_data(swept)
    assert (first["first"], first["last"], first["step"]) == (1, 64, 2)
    assert [b["backend"] for b in first["backends"]] == ["hf-fp32", "b"]
    assert first["backends"][1]["ranges"][0] == {"first": 2, "last": 50, "status": "overflow", "layer": LAYERS[5]}
    assert second["backends"] == [{"backend": "hf-fp32", "ranges": []}]
    page = words(render_html(Parts(swept, {})))
    assert page.count("data-lengths=") == 2
    assert "Verdict by length of the prompt, p2" in page


def test_pictures_and_sentences_stand_together() -> None:
    """Who cannot run scripts still reads what was asked and what it gave."""
    page = words(render_html(Parts(report(ROWS, REPEATS, ZERO), {})))
    assert page.count('data-picture="rows"') == page.count('data-picture="repeats"') == 1
    assert "The number of rows, on sim-exllama, prompt a" in page
    assert "zero gives zero" in page
    assert "data-picture" not in words(render_html(Parts(report(ZERO), {})))
