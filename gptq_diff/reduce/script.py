"""repro.py: a reduced call as a script of its own, which needs torch and the engine whose kernel it calls."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Template

import torch

from gptq_diff.reduce.call import Call
from gptq_diff.reduce.shrink import Pair

MOST_LINES = 60
MOST_NUMBERS = 24
"""Inputs and codes that are written into the script; a call with more of them goes to a file beside it."""
EXLLAMA, MARLIN = "exllama", "marlin"
RECONSTRUCT_ROWS = 51
"""Rows from which gptq_gemm and exllama v2 reconstruct the weight, for 2, 3 and 4 bit; 8 bit from 25 on."""
GPTQMODEL_COLUMNS = 32
"""GPTQModel's exllama_v2 takes N in multiples of this."""
DATA = "repro.safetensors"


@dataclass(frozen=True)
class Story:
    """What the script says of itself.

    title: the defect in a line. seen: "seen on ..." or why not. limit: l2 error from which a result is wrong, by the l2
    norm of the products' absolute sums.
    family: EXLLAMA or MARLIN. rows: M of the kernel's call, x padded with zeros; at least the call's own rows.
    failed, passed: what the kernel (or its simulation) gave at `at`, (row, column), as text.
    """

    title: str
    seen: str
    limit: float
    family: str
    rows: int
    at: tuple[int, int]
    failed: str
    passed: str


def _plain(text: str) -> str:
    """Text that may stand in a docstring: names come from checkpoints and engines, and the script will be run."""
    return re.sub(r"[^A-Za-z0-9 .,:;()/+*<>='_-]", "", text)


def family_of(path: str) -> str | None:
    """Which kernels a script can call for a path; None where no script is known."""
    return {"exllama-fast": EXLLAMA, "exllama-reconstruct": EXLLAMA, "marlin": MARLIN}.get(path)


def script(pair: Pair, story: Story) -> tuple[str, Mapping[str, torch.Tensor] | None]:
    """The script's text, and the tensors of the file beside it, None where all data stand in the script."""
    call = pair.failing
    rows, k, n = call.shape
    inside = in_script(call)
    groups = _ONE_GROUP if call.scales_GN.shape[0] == 1 else _GROUPS
    text = _SCRIPT.substitute(
        title=_plain(story.title), seen=_plain(story.seen), also="" if inside else ", safetensors",
        needs=_NEEDS[story.family], modules=_MODULES[story.family], rows=max(rows, story.rows),
        options=_OPTIONS[story.family],
        engine=_ENGINE[story.family], k=k, n=_columns(n, story.family), group=call.group_size,
        bits=call.bits, v2=call.format == "gptq_v2", at=story.at, limit=f"{story.limit:.3g}",
        passed=repr(story.passed), failed=repr(story.failed), data=_written(pair) if inside else _LOADED,
        multiply=Template(_MULTIPLY[story.family]).safe_substitute(groups=groups),
    )  # fmt: skip
    return text, None if inside else data_of(pair)


def _columns(n: int, family: str) -> str:
    """N as it is written: wider for GPTQModel's kernel, where it has to be."""
    if family != EXLLAMA or n >= GPTQMODEL_COLUMNS:
        return str(n)
    return f"max({n}, {GPTQMODEL_COLUMNS} * args.gptqmodel)"


def in_script(call: Call) -> bool:
    """Whether few numbers make the call: inputs, codes off the zero point, one scale, one zero point."""
    codes = int((call.centred != 0).sum())
    uniform = bool((call.scales_GN == call.scales_GN[0, 0]).all() and (call.zeros_GN == call.zeros_GN[0, 0]).all())
    return uniform and len(call.inputs) + codes <= MOST_NUMBERS


def data_of(pair: Pair) -> dict[str, torch.Tensor]:
    """What the script reads from its file: x of both calls, codes, zero points and scales, unpacked."""
    call = pair.failing
    return {
        "failing": call.x_MK.contiguous(), "passing": pair.passing.x_MK.contiguous(),
        "codes": call.codes_KN.to(torch.uint8).contiguous(), "zeros": call.zeros_GN.to(torch.int32).contiguous(),
        "scales": call.scales_GN.contiguous(),
    }  # fmt: skip


def _written(pair: Pair) -> str:
    call = pair.failing
    inputs = {at: float(call.x_MK[at]) for at in call.inputs}
    codes = {(int(k), int(n)): int(call.codes_KN[k, n]) for k, n in torch.nonzero(call.centred)}
    moved = {at: float(pair.passing.x_MK[at]) for at in call.inputs if pair.passing.x_MK[at] != call.x_MK[at]}
    return _WRITTEN.substitute(
        x=inputs, passes=f"X | {moved}" if pair.passing.inputs else "{}", codes=codes, zero=int(call.zeros_GN[0, 0]),
        scale=float(call.scales_GN[0, 0]), rows=call.shape[0],
    )  # fmt: skip


_SCRIPT = Template('''"""$title.

y = x W with W[k, n] = (code - zero) * scale. $seen.
Needs torch$also, a GPU and $needs.
Exit 1: the defect is there. 0: it is not. 3: this machine cannot tell. Made by `gptq-diff reduce`.
"""
import argparse, $modules
sys.excepthook = lambda *error: (sys.__excepthook__(*error), sys.exit(3))  # a crash is no answer
parser = argparse.ArgumentParser()
parser.add_argument("--rows", type=int, default=$rows, help="x is padded with zero rows to so many")
parser.add_argument("--device", default="cuda")
${options}args = parser.parse_args()
try:
    import torch
${engine}    if args.device == "cuda" and not torch.cuda.is_available():
        raise ImportError("torch sees no GPU")
except (ImportError, OSError) as e:
    sys.exit(print(f"nothing was run: {e}", file=sys.stderr) or 3)

K, N, GROUP, BITS, V2 = $k, $n, $group, $bits, $v2  # V2: the format of zero points
AT, LIMIT, EXPECTED = $at, $limit, ($passed, $failed)  # output shown; share of products called wrong; y there, as found
${data}def words(codes):  # int32 [rows * BITS / 32, columns]
    bits = (codes.long().T[:, :, None] >> torch.arange(BITS) & 1).reshape(codes.shape[1], -1, 32)
    return (bits << torch.arange(32)).sum(2).to(torch.int32).T.contiguous()  # the upper half wraps to negative

$multiply
weight = (codes.double() - zeros.repeat_interleave(GROUP, 0)) * scales.double().repeat_interleave(GROUP, 0)
for name, x, expected in zip(("passing", "failing"), (passing.half(), failing.half()), EXPECTED):
    padded, exact = torch.nn.functional.pad(x, (0, 0, 0, max(args.rows - len(x), 0))), x.double() @ weight
    y = multiply(padded.to(args.device))[: len(x)].double().cpu()
    wrong = not (y - exact).norm() <= LIMIT * (x.double().abs() @ weight.abs()).norm()  # so for NaN and inf
    print(f"{name}: exact {exact[AT]:.6g}, expected here {expected}, saw {y[AT]:.6g}:", "WRONG" if wrong else "right")
sys.exit(int(wrong))
''')

_WRITTEN = Template("""X = $x  # (row, k): the inputs that are not zero
PASSES = $passes  # the nearest inputs with which all is well
CODES, ZERO, SCALE = $codes, $zero, $scale  # (k, n): code; the others are ZERO
failing, passing = (torch.tensor([[x.get((m, k), 0.) for k in range(K)] for m in range($rows)]) for x in (X, PASSES))
codes = torch.tensor([[CODES.get((k, n), ZERO) for n in range(N)] for k in range(K)])
zeros, scales = torch.full((K // GROUP, N), ZERO), torch.full((K // GROUP, N), SCALE).half()
""")

_LOADED = f"""from safetensors.torch import load_file
data = load_file(__file__.replace("repro.py", "{DATA}"))
failing, passing = data["failing"], data["passing"]
codes, zeros, scales = (data[name].repeat(1, N)[:, :N] for name in ("codes", "zeros", "scales"))
"""

_NEEDS = {
    EXLLAMA: "vLLM, GPTQModel (--gptqmodel), or either's kernel alone (--kernel-library FILE.so)",
    MARLIN: "vLLM",
}
_MODULES = {EXLLAMA: "sys", MARLIN: "inspect, sys"}
_OPTIONS = {
    EXLLAMA: """parser.add_argument("--gptqmodel", action="store_true", help="its exllama_v2, not vLLM's gptq_gemm")
parser.add_argument("--kernel-library", help="compiled from either's sources, registers the same ops")
""",
    MARLIN: "",
}
_ENGINE = {
    EXLLAMA: """    if args.kernel_library:
        torch.ops.load_library(args.kernel_library)
    elif args.gptqmodel:
        from gptqmodel.utils import exllamav2
        exllamav2.exllamav2_gptq_runtime_available()  # compiles the ops at their first use
    else:
        import vllm._custom_ops
""",
    MARLIN: """    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.quantization.utils import marlin_utils as utils
    from vllm.scalar_type import scalar_types
""",
}
_ONE_GROUP = "make_q_matrix(qweight, *[None] * 5, words(zeros.T).T.contiguous().to(x.device), scale, None, room)"
_GROUPS = (
    "make_q_matrix(qweight, *x.new_empty(2, K).short(), *[None] * 3, words(zeros.T).T.contiguous().to(x.device),\n"
    "                                   scale, (torch.arange(K) // GROUP).int(), room)"
)
_MULTIPLY = {
    EXLLAMA: """def multiply(x):
    qweight, scale, none = words(codes).to(x.device), scales.to(x.device), torch.empty(0).int().to(x.device)
    if args.gptqmodel:
        ops, room, y = torch.ops.gptqmodel_exllamav2, x.new_empty(codes.numel() + 64), x.new_empty(len(x), N)
        handle = ops.$groups
        return ops.gemm_half_q_half(x, handle, y, False) or y
    given = dict(use_exllama=True, q_weight=qweight, q_perm=none, bit=BITS, a=x, b_q_weight=qweight, b_g_idx=none,
                 b_gptq_scales=scale, b_gptq_qzeros=words((zeros - int(not V2)).T).T.contiguous().to(x.device),
                 use_v2_format=V2)
    for op in (torch.ops._C.gptq_shuffle, torch.ops._C.gptq_gemm):  # their arguments differ from release to release
        y = op(*[given[argument.name] for argument in op.default._schema.arguments])
    return y
""",
    MARLIN: """def call(function, **given):  # arguments differ from release to release
    return function(**{name: given[name] for name in inspect.signature(function).parameters if name in given})

def multiply(x):
    none, size = torch.empty(0, dtype=torch.int32, device=x.device), -1 if GROUP == K else GROUP
    qweight = call(ops.gptq_marlin_repack, b_q_weight=words(codes).to(x.device), perm=none, size_k=K, size_n=N,
                   num_bits=BITS)
    scale = utils.marlin_permute_scales(scales.to(x.device), size_k=K, size_n=N, group_size=size)
    return call(utils.apply_gptq_marlin_linear, input=x, weight=qweight, weight_scale=scale, weight_zp=none, g_idx=none,
                g_idx_sort_indices=none, workspace=utils.marlin_make_workspace_new(x.device), is_k_full=True,
                wtype={4: scalar_types.uint4b8, 8: scalar_types.uint8b128}[BITS],
                output_size_per_partition=N, input_size_per_partition=K)
""",
}
