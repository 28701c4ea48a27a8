"""One headless Chromium for all tests here; skipped, with the reason, where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright import sync_api as playwright

from gptq_diff.compare.rows import CallRows, RowsSoFar
from gptq_diff.judged_file import write_judged
from gptq_diff.records import (
    Experiment,
    Finding,
    PartialSums,
    Report,
    RowMap,
    RowRange,
    Sweep,
    SweepRange,
    Workaround,
)
from gptq_diff.report.html import read_parts, render_html
from gptq_diff.rows_file import rows_file, write_rows
from tests.report.build import BAD, HOSTILE, LAYERS, a_report, a_result, judgements

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<img src=https://example.com/x onerror=alert(1)><script>alert(2)</script>" + HOSTILE


@pytest.fixture(scope="session")
def browser() -> Iterator[playwright.Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: `make browser` installs it on Debian")
    with playwright.sync_playwright() as started:
        # Without a sandbox, which needs rights that a container's root does not have; the page is our own.
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


def row_map() -> RowMap:
    """Five prompt tokens and two written ones; outputs are lost at the bad linear's first token, inputs after it."""
    so_far = RowsSoFar()
    for i, layer in enumerate(LAYERS):
        for step, rows in ((0, 5), (1, 1), (2, 1)):
            figures = np.tile(np.array([2.0**i, 2.0, 1e-3, 0.0], np.float32), (rows, 1))
            if i == BAD and step == 0:
                figures[0, 3] = 2
            if i > BAD:
                figures[0] = np.nan
            so_far.add(CallRows(layer, step, i, figures), "")
    found = so_far.map()
    assert found is not None
    return found


EXPERIMENTS = (
    Experiment(
        "row-sweep", LAYERS[BAD], 0, "one captured row, 1 to 64 times in one call", {"path_border": 50}, (EVIL,), None,
        (RowRange(1, 50, "exllama-fast", "overflow", 2, 1e-4), RowRange(51, 64, "exllama-reconstruct", "ok", 0, 7e-4)),
    ),
    Experiment(
        "repeats", LAYERS[BAD], 0, "the captured call 20 times",
        {"repeats": 20, "other_bits": 19, "bad": 20, "share_of_two_roundings": 0.23}, ("19 of 19 have other bits",),
    ),
)  # fmt: skip
SWEEPS = (
    Sweep("hf-fp32", EVIL, 46, 55, 1, (SweepRange(46, 55, "agree", None),)),
    Sweep(
        "sim-exllama", EVIL, 46, 55, 1,
        (SweepRange(46, 50, "overflow", LAYERS[BAD]), SweepRange(51, 55, "agree", None)),
    ),
)  # fmt: skip


def failing_report() -> Report:
    """A kernel that overflows on one of two prompts, with its cause; texts that mean harm."""
    sums = PartialSums("products", 0, 7, (1, 3, 5, 7), (0.0, 2.0, 81200.0, 81203.5), (0.0, 2.0, None, None))
    cause = Finding("accumulator-overflow", 0.95, ("a sum passes 65,504",), LAYERS[BAD], "a sum", sums)
    tried = (Workaround("backend hf-fp16", True, True, EVIL), Workaround("backend sim-gptq", True, False, "overflow"))
    bits = {layer: 10.0 - i for i, layer in enumerate(LAYERS)} | {LAYERS[BAD]: -0.3}
    bad = replace(a_result("overflow"), findings=(cause,), workarounds=tried, headroom_bits=bits, text=EVIL)
    report = a_report(
        a_result("agree", "hf-fp32"), replace(bad, experiments=EXPERIMENTS), a_result("agree", "hf-fp32", "long"),
        a_result("agree", prompt="long"),
    )  # fmt: skip
    return replace(report, sweeps=SWEEPS)


@pytest.fixture(scope="session")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run would have left, rendered."""
    root = tmp_path_factory.mktemp("run")
    for backend, prompt, kind in (("hf-fp32", "short", "ok"), ("sim-exllama", "short", "overflow")):
        write_judged(root / "judged" / backend / f"{prompt}.jsonl", judgements(kind))
    write_rows(rows_file(root, "sim-exllama", "short"), row_map())
    prompt = {"id": "short", "token_ids": list(range(37)), "text": EVIL, "sha256": "0" * 64}
    (root / "prompts.json").write_text(json.dumps([prompt]))
    page = root / "report.html"
    page.write_text(render_html(read_parts(root, failing_report())), encoding="utf-8")
    return page
