"""float16 overflow in Marlin with one scale a column: the unscaled sum is narrowed to float16.

y = x W with W[k, n] = (code - zero) * scale. Seen on NVIDIA H200 (README.md).
Needs torch, a GPU and vLLM.
Exit 1: the defect is there. 0: it is not. 3: this machine cannot tell. Made by `gptq-diff reduce`.
"""
import argparse, inspect, sys
sys.excepthook = lambda *error: (sys.__excepthook__(*error), sys.exit(3))  # a crash is no answer
parser = argparse.ArgumentParser()
parser.add_argument("--rows", type=int, default=1, help="x is padded with zero rows to so many")
parser.add_argument("--device", default="cuda")
args = parser.parse_args()
try:
    import torch
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.quantization.utils import marlin_utils as utils
    from vllm.scalar_type import scalar_types
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ImportError("torch sees no GPU")
except (ImportError, OSError) as e:
    sys.exit(print(f"nothing was run: {e}", file=sys.stderr) or 3)

K, N, GROUP, BITS, V2 = 128, 64, 128, 4, False  # V2: the format of zero points
AT, LIMIT, EXPECTED = (0, 4), 0.01, ('255.75', 'inf')  # output shown; share of products called wrong; y there, as found
X = {(0, 13): 10920.0}  # (row, k): the inputs that are not zero
PASSES = X | {(0, 13): 10912.0}  # the nearest inputs with which all is well
CODES, ZERO, SCALE = {(13, 4): 14}, 8, 0.00390625  # (k, n): code; the others are ZERO
failing, passing = (torch.tensor([[x.get((m, k), 0.) for k in range(K)] for m in range(1)]) for x in (X, PASSES))
codes = torch.tensor([[CODES.get((k, n), ZERO) for n in range(N)] for k in range(K)])
zeros, scales = torch.full((K // GROUP, N), ZERO), torch.full((K // GROUP, N), SCALE).half()
def words(codes):  # int32 [rows * BITS / 32, columns]
    bits = (codes.long().T[:, :, None] >> torch.arange(BITS) & 1).reshape(codes.shape[1], -1, 32)
    return (bits << torch.arange(32)).sum(2).to(torch.int32).T.contiguous()  # the upper half wraps to negative

def call(function, **given):  # arguments differ from release to release
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

weight = (codes.double() - zeros.repeat_interleave(GROUP, 0)) * scales.double().repeat_interleave(GROUP, 0)
for name, x, expected in zip(("passing", "failing"), (passing.half(), failing.half()), EXPECTED):
    padded, exact = torch.nn.functional.pad(x, (0, 0, 0, max(args.rows - len(x), 0))), x.double() @ weight
    y = multiply(padded.to(args.device))[: len(x)].double().cpu()
    wrong = not (y - exact).norm() <= LIMIT * (x.double().abs() @ weight.abs()).norm()  # so for NaN and inf
    print(f"{name}: exact {exact[AT]:.6g}, expected here {expected}, saw {y[AT]:.6g}:", "WRONG" if wrong else "right")
sys.exit(int(wrong))
