"""The page is made of the results alone."""

from __future__ import annotations

from benchmarks.faults import document, tables
from tests.benchmarks.faults.test_score import K, fault, record


def result(seed):
    records = [
        record([fault("clamp", {K: 3.0})], K, [("clamp", K)]),
        {**record([fault("dtype", {K: 5.0})], K, [("unknown", K)]), "id": "fault-1"},
        {**record([fault("dtype", {K: 0.3})]), "id": "fault-2"},
        {**record([]), "healthy": True, "id": "healthy-0"},
    ]
    keys = ("date", "cpu", "cores", "memory_gib", "python", "torch", "numba", "omp_wait_policy")
    keys += ("load_average_before", "load_average_after")
    about = dict.fromkeys(keys, "1")
    return {"seed": seed, "machine": about, "summary": tables.summary(records), "records": records}


def test_the_page_shows_figures_confusion_and_misses():
    """Rates, the pair that was not told apart, and what replays the miss."""
    page = document.page(result(1234))
    for words in (
        "| faults above the threshold | 2 of 3 (66.7 %) | >= 80 % |", "| cause right, all | 50.0 % (1 of 2) |",
        "| dtype | unknown 1 |", "Causes that were not told apart: dtype taken for unknown (1).",
        "--seed 1234 --only ID", "fault-1: m fp16", "| dtype | 1 | 1 | 0 | 1 |", "0 of 1",
        "| found of those from 1 to 1.33 judge's thresholds | none |", "| found of those below | 0.0 % (0 of 1) |",
    ):  # fmt: skip
        assert words in page, words


def test_a_development_seed_is_said_to_be_one():
    """Figures of a seed that was looked at are no result."""
    assert "a development seed" in document.page(result(7))
    assert "not used in development" in document.page(result(9000))


def test_lines_fit_the_page():
    """Prose keeps to 120 columns, as the other pages do."""
    text = document.INTRO + document.THRESHOLD.format(factor=3, sure=4, share=4 / 3)
    assert max(map(len, text.splitlines())) <= 120
