"""How near the reference itself comes to being called bad, over hundreds of prompts, and in which order K is added up.

    python -m benchmarks.reference_alarms [--prompts 200] [--seed 77] [--scratch DIR] [--out FILE]
    python -m benchmarks.reference_alarms --explain 137 model.layers.11.self_attn.o_proj 405

SmolLM2, `hf-fp32` alone, the prefill: the prompts of benchmarks.long_and_many, and 70 of random tokens, 1 to 7 and 30
to 60 of them. `gptq-diff run` says what it says; then every call is judged once more, with the sharper figure asked for
from 0.6 of the limit on and not only above it, for what is left of the limit is seen only so. 3 GB on the disk.
--explain says of one column of one prompt which sums are rounded where it errs most.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import smollm2
from benchmarks.long_and_many import short_prompts
from benchmarks.machine import machine
from benchmarks.run import RESULTS, write
from benchmarks.watched import run_watched
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.cli.threads import wait_without_spinning
from gptq_diff.compare import refine
from gptq_diff.compare.align import Captured
from gptq_diff.compare.judge_run import judge_captures, layer_weight, open_captures
from gptq_diff.judged_file import read_judged
from gptq_diff.numerics import floors
from gptq_diff.records import Judgement

BACKEND = "hf-fp32"
ASKED_FROM = 0.6
SAMPLED = 16
"""Columns of a linear whose floors are compared."""


def main() -> None:
    """Run, judge again, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reference_alarms", description="The reference, judged.")
    parser.add_argument("--prompts", type=int, default=200, help="of benchmarks.long_and_many; default: %(default)s")
    parser.add_argument("--seed", type=int, default=77, help="of the other prompts; default: %(default)s")
    parser.add_argument("--scratch", type=Path, help="for the runs; default: the system's place")
    parser.add_argument("--out", type=Path, default=RESULTS / "reference_alarms.json", help="default: %(default)s")
    parser.add_argument(
        "--explain", nargs=3, metavar=("PROMPT", "LINEAR", "COLUMN"), help="of benchmarks.long_and_many"
    )
    given = parser.parse_args()
    wait_without_spinning()
    if given.explain:
        number, layer, column = given.explain
        print(json.dumps(explained(short_prompts(int(number) + 1)[-1], layer, int(column), given.scratch), indent=1))
        return
    prompts = {"many": short_prompts(given.prompts), "random": random_prompts(given.seed)}
    found = {name: measured(drawn, given.scratch) for name, drawn in prompts.items()}
    begins = {k: block_begins(k) for k in (576, 1536)}
    print(json.dumps(begins))
    write(given.out, {"machine": machine(), "blocks_begin": begins, **found})


def random_prompts(seed: int) -> list[list[int]]:
    """40 of 1 to 7 tokens and 30 of 30 to 60."""
    draw = np.random.default_rng(seed)
    sizes = [*draw.integers(1, 8, 40), *draw.integers(30, 61, 30)]
    return [draw.integers(1, 49152, size).tolist() for size in sizes]


def captured(prompts: list[list[int]], place: Path) -> tuple[dict[str, Any], RunDir]:
    """The report of one run over these prompts, p0, p1, ..., and its directory below `place`."""
    file, out = place / "prompts.json", place / "run"
    file.write_text(json.dumps([{"id": f"p{n}", "token_ids": ids} for n, ids in enumerate(prompts)]))
    asked = ["run", "--model", str(smollm2.model()), "--prompt-file", str(file), "--backends", BACKEND]
    report = run_watched([*asked, "--max-new-tokens", "1", "--capture", "full", "--quiet"], out).report
    return report, RunDir(out)


def measured(prompts: list[list[int]], scratch: Path | None) -> dict[str, Any]:
    """One run over these prompts, and what its calls come to."""
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        report, run = captured(prompts, Path(place))
        row = {
            "prompts": len(prompts), "tokens": sum(map(len, prompts)),
            "status": sorted({r["status"] for r in report["results"]}),
            **judged_again(run, [f"p{n}" for n in range(len(prompts))]),
        }  # fmt: skip
    print(json.dumps(row, indent=1), flush=True)
    return row


def judged_again(run: RunDir, prompts: list[str]) -> dict[str, Any]:
    """The largest shares of the limit, as the run has them and with the sharper figure asked for earlier."""
    checkpoint = open_checkpoint(smollm2.model())
    as_judged = {prompt: read_judged(run.judged(BACKEND, prompt)) for prompt in prompts}
    captures = open_captures(run, [(BACKEND, prompt) for prompt in prompts], BACKEND)
    before, refine.SUSPECT = refine.SUSPECT, ASKED_FROM
    try:
        again = judge_captures(captures, checkpoint, checkpoint, lambda _done, _of: None)
    finally:
        refine.SUSPECT = before
    long_enough = [prompt for prompt, judged in as_judged.items() if judged[0].rows >= floors.FEWEST_ROWS]
    raised = np.concatenate([rise(checkpoint, captures[BACKEND, prompt]) for prompt in long_enough[::10]])
    return {
        "calls": sum(map(len, as_judged.values())),
        "as_judged": largest(as_judged),
        f"asked_from_{ASKED_FROM}": largest({prompt: judged for (_, prompt), judged in again.items()}),
        "columns": len(raised),
        "floor_over_closed": {q: round(float(np.quantile(raised, q)), 3) for q in (0.01, 0.1, 0.5, 0.9, 0.99, 1.0)},
        "floor_over_closed_above_4_3": round(float((raised > 4 / 3).mean()), 4),
    }


def largest(judged: dict[str, list[Judgement]]) -> list[tuple[float, str, str, int]]:
    """Share of the limit, prompt, linear and rows of the eight calls that come nearest to it."""
    calls = [(round(j.excess or 0.0, 3), prompt, j.layer, j.rows) for prompt, found in judged.items() for j in found]
    return sorted(calls, reverse=True)[:8]


def rise(checkpoint: Checkpoint, capture: Captured) -> np.ndarray:
    """The sharper floor over the closed one, for 16 columns of every linear of a prompt of 8 tokens or more."""
    found = []
    for index, spec in enumerate(checkpoint.layers):
        (call,) = capture.calls(spec.name)
        weight = layer_weight(spec, checkpoint, checkpoint)
        x_MK, n = (
            call.x_MK,
            torch.randint(spec.out_features, (SAMPLED,), generator=torch.Generator().manual_seed(index)),
        )
        wide_KC = weight.columns(n).double()
        weight_M = 1.0 / (x_MK.double().square() @ weight.clean_KN.double().square().sum(dim=1))
        energy_C = weight_M @ x_MK.double().square() @ wide_KC.square()
        exact2_C = weight_M @ (x_MK.double() @ wide_KC).square()
        closed_C = floors.exact(floors.Rows(energy_C, exact2_C, spec.in_features, float(weight_M.sum()), spec.bits))
        sharper = refine.rounding("exact", x_MK, weight.columns(n), weight.linear, n)
        found.append((sharper.by_column(x_MK, weight_M) / closed_C).sqrt().numpy())
    return np.concatenate(found)


def explained(ids: list[int], layer: str, column: int, scratch: Path | None) -> dict[str, Any]:
    """What is rounded in the row of that column that errs most, each row's squares weighted as the judge weights them.

    standard_deviations: of its error, if the products were one chain and every sum had the mean spacing of its size, if
    they were added up in the blocks that torch makes of them here, and if each sum had its own spacing besides.
    """
    checkpoint = open_checkpoint(smollm2.model())
    spec = next(spec for spec in checkpoint.layers if spec.name == layer)
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        _, run = captured([ids], Path(place))
        (call,) = open_captures(run, [(BACKEND, "p0")], BACKEND)[BACKEND, "p0"].calls(layer)
        x_MK, y_M = call.x_MK.double().numpy(), call.y_MN[:, column].double().numpy()
    w_KN = layer_weight(spec, checkpoint, checkpoint).clean_KN.double().numpy()
    error_M, weight_M = y_M - x_MK @ w_KN[:, column], 1.0 / (x_MK**2 @ (w_KN**2).sum(axis=1))
    share_M = error_M**2 * weight_M / (error_M**2 @ weight_M)
    row = int(share_M.argmax())
    products, begins = x_MK[row] * w_KN[:, column], block_begins(spec.in_features, len(x_MK))
    chain = products.cumsum()
    parts = [part.cumsum() for part in np.split(products, begins[1:])]
    rounded = np.concatenate([*parts, np.cumsum([part[-1] for part in parts])[1:]])
    mean_spacing = [floors.SINGLE_RMS * float(np.linalg.norm(sums)) for sums in (chain, rounded)]
    own_spacing = float(np.linalg.norm(np.spacing(np.abs(rounded).astype(np.float32)).astype(np.float64))) / 12**0.5
    return {
        "row": row, "of_the_squared_error": round(float(share_M[row]), 3), "error": float(error_M[row]),
        "error_ulp": round(float(error_M[row] / np.spacing(np.float32(abs(y_M[row])))), 1), "blocks_begin": begins,
        "largest_sum_in_one_chain": round(float(np.abs(chain).max()), 2),
        "largest_sum_in_blocks": [round(float(np.abs(part).max()), 2) for part in parts],
        "standard_deviations": [round(abs(float(error_M[row])) / s, 2) for s in (*mean_spacing, own_spacing)],
    }  # fmt: skip


def block_begins(k: int, rows: int = 8) -> list[int]:
    """Where the blocks of K begin that torch adds up apart here.

    A 2^26 among ones swallows those that follow it in its own block, and no others: at the first place of a block it
    swallows most.
    """
    swallowed = []
    for first in range(0, k, rows):
        x_MK = torch.ones(rows, k)
        x_MK[range(rows), range(first, first + rows)] = 2.0**26
        y_M = (x_MK @ torch.ones(k, k))[:, 0].double() - 2.0**26
        swallowed.extend((k - y_M).tolist())
    return [i for i in range(k) if i == 0 or swallowed[i] > swallowed[i - 1] + 8]


if __name__ == "__main__":
    main()
