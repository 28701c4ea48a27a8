"""Local errors of every linear afterwards: python -m benchmarks.gpu.thirty_two.judge_cost --run RUN --out FILE.json

Of a finished run with all its tensors: each backend's capture is judged by itself, on a GPU if there is one, then some
blocks once more on the CPU, whose verdicts must be the same; then what else is computed of the tensors, stage by stage.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.thirty_two.prompt import Found, synchronize
from gptq_diff.capture.prune import size_of
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.compare.judge_run import Key, judge_captures, open_captures
from gptq_diff.compare.place import judging_device
from gptq_diff.records import Judgement
from gptq_diff.session.asked import RunRecord
from gptq_diff.session.between_run import judge_intervals
from gptq_diff.session.diagnose_run import diagnose_run
from gptq_diff.session.finished import finished_captures
from gptq_diff.session.headroom_run import measure_headroom


def judged(run: RunDir, key: Key, judge: Checkpoint, reference: str) -> tuple[float, list[Judgement]]:
    """(seconds, judgements) of one capture, opened beside the reference's."""
    synchronize()
    started = time.perf_counter()
    captures = open_captures(run, [(reference, key[1]), key], reference)
    found = judge_captures({key: captures[key]}, judge, judge, lambda *_: None)[key]
    for captured in captures.values():
        captured.reader.close()
    return time.perf_counter() - started, found


def of_blocks(judge: Checkpoint, blocks: set[int]) -> Checkpoint:
    """The same checkpoint, of whose linears only those of these blocks are listed, judged on the CPU."""
    some = open_checkpoint(judge.path)
    some.layers = tuple(s for s in judge.layers if int(s.name.split(".")[2]) in blocks)
    return some


def same(ours: list[Judgement], theirs: list[Judgement]) -> dict[str, Any]:
    """How the judgements of some linears compare: kinds and counts have to be the same, figures nearly so."""
    known = {(j.step, j.stored): j for j in ours}
    pairs = [(known[j.step, j.stored], j) for j in theirs]
    words = [(a.kind, a.cause, a.nonfinite, a.first_index) == (b.kind, b.cause, b.nonfinite, b.first_index)
             for a, b in pairs]  # fmt: skip
    gaps = [abs(a.local_l2_rel - b.local_l2_rel) / max(b.local_l2_rel, 1e-12) for a, b in pairs
            if a.local_l2_rel is not None and b.local_l2_rel is not None]  # fmt: skip
    return {"compared": len(pairs), "same_verdict": sum(words), "largest_relative_gap": max(gaps, default=None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu-blocks", type=int, nargs="*", default=[0])
    parser.add_argument("--device", default="")
    asked = parser.parse_args()
    run = RunDir(asked.run)
    record = RunRecord.from_json(run.run())
    with open_checkpoint(Path(record.model.path)) as judge:
        judge.work_device = judging_device(asked.device, judge.layers)
        packed = sum(judge.packed(s.name).nbytes for s in judge.layers)
        found = Found(asked.out, what="judging finished captures, seconds", linears=len(judge.layers))
        found.add(device=str(judge.work_device), packed_bytes=packed,
                  weights=sum(s.in_features * s.out_features for s in judge.layers))  # fmt: skip
        synchronize()
        by_backend: dict[str, Any] = {}
        keys = finished_captures(record, run)
        for key in keys:
            seconds, judgements = judged(run, key, judge, record.reference)
            entry: dict[str, Any] = {
                "seconds": round(seconds, 3), "judgements": len(judgements),
                "captured_bytes": size_of(run.capture(*key)), "kinds": sorted({j.kind for j in judgements}),
            }  # fmt: skip
            if judge.work_device.type != "cpu":
                with of_blocks(judge, set(asked.cpu_blocks)) as few:
                    entry["cpu_seconds_of_blocks"], theirs = judged(run, key, few, record.reference)
                entry["against_the_cpu"] = same(judgements, theirs)
            by_backend[key[0]] = entry
            found.add(by_backend=by_backend)
        if torch.cuda.is_available():
            found.add(peak_gpu_bytes=torch.cuda.max_memory_allocated())
        stages = {
            "between": lambda: judge_intervals(run, record, keys, judge),
            "diagnose": lambda: diagnose_run(run, record, keys, judge, judge),
            "headroom": lambda: measure_headroom(run, record, keys, judge, judge),
        }
        seconds_of: dict[str, float] = {}
        for name, stage in stages.items():
            started = time.perf_counter()
            stage()
            seconds_of[name] = round(time.perf_counter() - started, 3)
            found.add(stages=seconds_of)


if __name__ == "__main__":
    main()
