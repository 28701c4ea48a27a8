"""float16 overflow in exllama's fused GPTQ kernel: unscaled products are summed in float16.

y = x W with W[k, n] = (code - zero) * scale. Seen on NVIDIA H200 (README.md).
Needs torch, a GPU and vLLM, GPTQModel (--gptqmodel), or either's kernel alone (--kernel-library FILE.so).
Exit 1: the defect is there. 0: it is not. 3: this machine cannot tell. Made by `gptq-diff reduce`.
"""
import argparse, sys
sys.excepthook = lambda *error: (sys.__excepthook__(*error), sys.exit(3))  # a crash is no answer
parser = argparse.ArgumentParser()
parser.add_argument("--rows", type=int, default=1, help="x is padded with zero rows to so many")
parser.add_argument("--device", default="cuda")
parser.add_argument("--gptqmodel", action="store_true", help="its exllama_v2, not vLLM's gptq_gemm")
parser.add_argument("--kernel-library", help="compiled from either's sources, registers the same ops")
args = parser.parse_args()
try:
    import torch
    if args.kernel_library:
        torch.ops.load_library(args.kernel_library)
    elif args.gptqmodel:
        from gptqmodel.utils import exllamav2
        exllamav2.exllamav2_gptq_runtime_available()  # compiles the ops at their first use
    else:
        import vllm._custom_ops
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ImportError("torch sees no GPU")
except (ImportError, OSError) as e:
    sys.exit(print(f"nothing was run: {e}", file=sys.stderr) or 3)

K, N, GROUP, BITS, V2 = 128, max(8, 32 * args.gptqmodel), 128, 4, False  # V2: the format of zero points
AT, LIMIT, EXPECTED = (0, 4), 0.01, ('1023', 'inf')  # output shown; share of products called wrong; y there, as found
X = {(0, 77): 9360.0}  # (row, k): the inputs that are not zero
PASSES = X | {(0, 77): 9352.0}  # the nearest inputs with which all is well
CODES, ZERO, SCALE = {(77, 4): 15}, 8, 0.015625  # (k, n): code; the others are ZERO
failing, passing = (torch.tensor([[x.get((m, k), 0.) for k in range(K)] for m in range(1)]) for x in (X, PASSES))
codes = torch.tensor([[CODES.get((k, n), ZERO) for n in range(N)] for k in range(K)])
zeros, scales = torch.full((K // GROUP, N), ZERO), torch.full((K // GROUP, N), SCALE).half()
def words(codes):  # int32 [rows * BITS / 32, columns]
    bits = (codes.long().T[:, :, None] >> torch.arange(BITS) & 1).reshape(codes.shape[1], -1, 32)
    return (bits << torch.arange(32)).sum(2).to(torch.int32).T.contiguous()  # the upper half wraps to negative

def multiply(x):
    qweight, scale, none = words(codes).to(x.device), scales.to(x.device), torch.empty(0).int().to(x.device)
    if args.gptqmodel:
        ops, room, y = torch.ops.gptqmodel_exllamav2, x.new_empty(codes.numel() + 64), x.new_empty(len(x), N)
        handle = ops.make_q_matrix(qweight, *[None] * 5, words(zeros.T).T.contiguous().to(x.device), scale, None, room)
        return ops.gemm_half_q_half(x, handle, y, False) or y
    given = dict(use_exllama=True, q_weight=qweight, q_perm=none, bit=BITS, a=x, b_q_weight=qweight, b_g_idx=none,
                 b_gptq_scales=scale, b_gptq_qzeros=words((zeros - int(not V2)).T).T.contiguous().to(x.device),
                 use_v2_format=V2)
    for op in (torch.ops._C.gptq_shuffle, torch.ops._C.gptq_gemm):  # their arguments differ from release to release
        y = op(*[given[argument.name] for argument in op.default._schema.arguments])
    return y

weight = (codes.double() - zeros.repeat_interleave(GROUP, 0)) * scales.double().repeat_interleave(GROUP, 0)
for name, x, expected in zip(("passing", "failing"), (passing.half(), failing.half()), EXPECTED):
    padded, exact = torch.nn.functional.pad(x, (0, 0, 0, max(args.rows - len(x), 0))), x.double() @ weight
    y = multiply(padded.to(args.device))[: len(x)].double().cpu()
    wrong = not (y - exact).norm() <= LIMIT * (x.double().abs() @ weight.abs()).norm()  # so for NaN and inf
    print(f"{name}: exact {exact[AT]:.6g}, expected here {expected}, saw {y[AT]:.6g}:", "WRONG" if wrong else "right")
sys.exit(int(wrong))
