"""Writes the scripts of docs/findings: python -m benchmarks.findings --run RUN [--findings docs/findings]

RUN is a run of SmolLM2 with the gain shift 11:19:4 and sim-exllama among its backends, as `gptq-diff demo` makes: its
first bad call is reduced. The other two calls are made here, since no simulated backend meets them in a model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from gptq_diff.kernels.base import Kernel
from gptq_diff.kernels.sim_reconstruct import SimReconstruct
from gptq_diff.reduce.call import Call, packed
from gptq_diff.reduce.narrowed import NarrowedSum
from gptq_diff.reduce.script import RECONSTRUCT_ROWS, Story, family_of, script
from gptq_diff.reduce.shrink import Pair, shrink
from gptq_diff.reduce.titles import title_of
from gptq_diff.reduce.trial import Fault, Trial, simulated
from gptq_diff.session.reduce_run import Wanted, reduce_run
from gptq_diff.session.reduce_story import LEAST_LIMIT, seen, shown, worst_output

OVERFLOW = Fault("overflow", None)
ON_A_GPU = Path(__file__).parent / "results" / "gpu" / "h200-findings.json"
"""What `python -m benchmarks.gpu.findings` found of the scripts."""
FUSED, MARLIN, RECONSTRUCT = (
    "exllama-accumulator-overflow", "marlin-channelwise-overflow", "reconstruct-fp16-accumulation",
)  # fmt: skip
MIDDLE = 8


def call_of(k: int, n: int, scale: float, inputs: dict[int, float], codes: dict[tuple[int, int], int]) -> Call:
    """One row, one group of all K rows; codes are MIDDLE, the zero point, but for those given."""
    x_MK, codes_KN = torch.zeros((1, k), dtype=torch.float16), torch.full((k, n), MIDDLE, dtype=torch.int16)
    for channel, value in inputs.items():
        x_MK[0, channel] = value
    for at, code in codes.items():
        codes_KN[at] = code
    zeros_GN, scales_GN = torch.full((1, n), MIDDLE, dtype=torch.int16), torch.full((1, n), scale, dtype=torch.float16)
    return Call(x_MK, codes_KN, zeros_GN, scales_GN, 4, k, "gptq")


def marlin() -> Pair:
    """One activation of 12,000 among standard normal ones, K 5120, codes at random, one scale a column; reduced."""
    draw = torch.Generator().manual_seed(0)
    call = call_of(5120, 256, 2.0**-8, {}, {})
    call.codes_KN.copy_(torch.randint(0, 16, call.codes_KN.shape, generator=draw))
    call.x_MK.copy_(torch.randn(call.x_MK.shape, generator=draw))
    call.x_MK[0, 13] = 12000.0
    pair = shrink(
        call, NarrowedSum().multiply(call.x_MK, packed(call)).y_MN, Trial(simulated(NarrowedSum), OVERFLOW), 64
    )
    assert pair is not None
    return pair


def reconstruct() -> Pair:
    """Products of 89,600 and -86,016, which nearly cancel, in a shape in which a model was seen to break.

    cuBLAS picks its algorithm by the shape, so that is kept. Passing: both inputs so small that no product overflows;
    one of them alone could still pass or fail with the order of the sums.
    """
    codes = {(682, 200): 15, (762, 200): 1}
    values = (
        {682: 25600.0, 762: 24576.0},
        {682: 17920.0, 762: 16896.0},
    )  # times 3.5: multiples of float16's spacing there
    failing, passing = (call_of(1024, 512, 0.5, x, codes) for x in values)
    trial = Trial(simulated(SimReconstruct), OVERFLOW)
    assert trial.fails(failing)
    assert not trial.fails(passing)
    return Pair(failing, passing)


def seen_of(finding: str, predicted: str) -> str:
    """Where the script of that name was seen to find the defect; else what is only predicted."""
    found = json.loads(ON_A_GPU.read_text())
    exits = [s["exit"] for s in found["scripts"] if s["finding"] == finding and s["expected"] == 1]
    return f"Seen on {found['gpu']} (README.md)" if exits and set(exits) == {1} else predicted


def write(place: Path, finding: str, pair: Pair, path: str, kernel: type[Kernel]) -> None:
    """The script of a call that was made here."""
    outputs = [kernel().multiply(call.x_MK, packed(call)).y_MN for call in (pair.failing, pair.passing)]
    at = worst_output(pair.failing, outputs[0])
    failed, passed = (shown(call, y_MN, at).output for call, y_MN in zip((pair.failing, pair.passing), outputs))
    told = seen_of(finding, f"Predicted with a simulation ({kernel().name}), not yet seen on a GPU")
    family = family_of(path)
    assert family is not None
    rows = RECONSTRUCT_ROWS if path == "exllama-reconstruct" else 1
    text, tensors = script(pair, Story(title_of(path, "overflow"), told, LEAST_LIMIT, family, rows, at, failed, passed))
    assert tensors is None
    (place / "repro.py").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--findings", type=Path, default=Path("docs/findings"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = reduce_run(asked.run, Wanted("sim-exllama", simulate=True, out=Path(place, "reduced")))
        print(found)
        text, predicted = Path(place, "reduced", found.script).read_text(), seen(found)
        assert predicted in text
        (asked.findings / FUSED / "repro.py").write_text(text.replace(predicted, seen_of(FUSED, predicted)))
    write(asked.findings / MARLIN, MARLIN, marlin(), "marlin", NarrowedSum)
    write(asked.findings / RECONSTRUCT, RECONSTRUCT, reconstruct(), "exllama-reconstruct", SimReconstruct)


if __name__ == "__main__":
    main()
