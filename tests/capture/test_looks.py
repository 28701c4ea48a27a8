"""Looks at calls: figures, copies and the bias, in main memory, and on a GPU the same by the kernel."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from importlib.resources import as_file, files

import pytest
import torch

from gptq_diff.capture.bits import same_bits
from gptq_diff.capture.call import Fused
from gptq_diff.capture.cuda.kernel import looker_of
from gptq_diff.capture.looks import HostLooker, Looker, figures_of
from gptq_diff.capture.strip import Strip
from gptq_diff.numerics.magnitude import magnitude
from tests.devices import REAL, in_force

SHAPES = [
    (1, 8, (8,)),
    (37, 5120, (5120, 1024, 1024)),
    (3, 64, (8, 16, 24, 8, 8, 8, 8, 8)),
    (200, 1536, (4096,)),
    (2048, 256, (512, 8)),
]


def call_of(
    rows: int, inner: int, widths: tuple[int, ...], dtype: torch.dtype, *, odd: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, y, bias; odd: with NaN of both signs, infinities, subnormals, negative zeros, and sums that overflow."""
    draw = torch.Generator().manual_seed(rows)
    x, y = (torch.randn((rows, n), generator=draw).to(dtype) for n in (inner, sum(widths)))
    bias = torch.randn((sum(widths),), generator=draw).to(dtype)
    if odd:
        x[0, 3], x[-1, -1], x[0, 0] = float("nan"), float("-inf"), -0.0
        y[0, 0], y[-1, -1], y[0, 1], y[-1, 2], y[0, 5] = float("inf"), -float("nan"), 1e-7, -0.0, 65504.0
        bias[0], bias[5], bias[2] = float("-inf"), 40000.0, 0.0
    return x, y, bias


def looked_at(
    looker: Looker, parts: Fused, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None, *, copies: bool
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """What was copied, what was told, and y afterwards; nothing else may have changed."""
    total = x.numel() + y.numel()
    strip = Strip(
        0, torch.zeros(total + 16, dtype=x.dtype, device=x.device),
        torch.zeros(figures_of(parts) + 2, dtype=torch.int32, device=x.device),
    )  # fmt: skip
    assert strip.told is not None
    assert looker.takes(parts, x, y)
    assert bias is None or looker.adds(bias, y)
    kind = looker.kind(parts, x.shape[1], x.dtype)
    assert looker.look(kind, len(x), x, y, strip, 8 if copies else -1, 1, bias)
    around = torch.cat([strip.values[:8], strip.values[8 + total :]])
    assert not around.any()
    assert not strip.told[[0, -1]].any()
    if not copies:
        assert not strip.values.any()
    return strip.values[8 : 8 + total] if copies else None, strip.told[1:-1], y


def figures(told: torch.Tensor, dtype: torch.dtype) -> list[tuple[float, int, int]]:
    return [(float(top.to(torch.int16).view(dtype)), int(nan), int(inf)) for top, nan, inf in told.cpu().view(-1, 3)]


@pytest.mark.parametrize("odd", [False, True], ids=["finite", "odd values"])
@pytest.mark.parametrize("copies", [False, True], ids=["figures alone", "copied"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_look_in_main_memory_tells_and_copies_every_tensor_by_itself(
    shape: tuple[int, int, tuple[int, ...]], dtype: torch.dtype, copies: bool, odd: bool
) -> None:
    """Figures are those of `magnitude`; x lies first, then every linear's columns; y is given its bias afterwards."""
    x, y, bias = call_of(*shape, dtype, odd=odd)
    parts = Fused(tuple(map(str, range(len(shape[2])))), shape[2])
    added = bias if dtype is torch.float16 else None
    before = y.clone()
    to, told, after = looked_at(HostLooker(), parts, x, y, added, copies=copies)
    tensors = [x, *torch.split(before, list(shape[2]), dim=1)]
    assert figures(told, dtype) == [tuple(magnitude(t)) for t in tensors]
    assert same_bits(after, before if added is None else before + bias)
    if to is not None:
        assert same_bits(to, torch.cat([t.reshape(-1) for t in tensors]))


@pytest.mark.parametrize("odd", [False, True], ids=["finite", "odd values"])
@pytest.mark.parametrize("copies", [False, True], ids=["figures alone", "copied"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_does_the_same_on_a_gpu(
    shape: tuple[int, int, tuple[int, ...]], dtype: torch.dtype, copies: bool, odd: bool
) -> None:
    """Bit for bit: copies, figures, and the bias as torch adds it on that GPU."""
    x, y, bias = call_of(*shape, dtype, odd=odd)
    parts = Fused(tuple(map(str, range(len(shape[2])))), shape[2])
    with in_force(REAL) as device:
        looker = looker_of(torch.device(device))
        assert looker is not None
        there, given, added = (t.to(device) for t in (x, y, bias))
        by_torch = given + added
        ours = looked_at(looker, parts, there, given, added if dtype is torch.float16 else None, copies=copies)
        expected = looked_at(HostLooker(), parts, x, y.clone(), None, copies=copies)
        assert ours[1].tolist() == expected[1].tolist()
        assert same_bits(ours[2], by_torch if dtype is torch.float16 else y.to(device))
        if expected[0] is not None and ours[0] is not None:
            assert same_bits(ours[0].cpu(), expected[0])


def test_the_kernel_refuses_what_does_not_lie_as_it_has_to() -> None:
    """Tensors with gaps, and ones that begin between two multiples of 16 bytes: nothing is done then."""
    with in_force(REAL) as device:
        looker = looker_of(torch.device(device))
        assert looker is not None
        parts = Fused(("a",), (16,))
        x, y = (torch.ones(3, 16, dtype=torch.float16, device=device) for _ in range(2))
        strip = Strip(
            0, torch.zeros(96, dtype=torch.float16, device=device), torch.zeros(6, dtype=torch.int32, device=device)
        )
        kind = looker.kind(parts, 16, torch.float16)
        wide, flat = torch.ones(3, 32, device=device).half(), torch.ones(3 * 16 + 1, device=device).half()
        assert not looker.look(kind, 3, wide[:, :16], y, strip, 0, 0, None)
        assert not looker.look(kind, 3, x, flat[1:].view(3, 16), strip, 0, 0, None)
        assert not strip.values.any()
        assert strip.told is not None
        assert not strip.told.any()
        assert looker.look(kind, 3, x, y, strip, 0, 0, None)
        assert strip.told.tolist() == [0x3C00, 0, 0] * 2


@pytest.mark.parametrize(
    ("inner", "widths", "rows_dtype", "taken"),
    [
        (8, (8, 16), torch.float16, True),
        (8, (8, 16), torch.bfloat16, True),
        (8, (8, 16), torch.float32, False),
        (8, (8,) * 9, torch.float16, False),
    ],
)
def test_other_calls_are_left_to_torch(
    inner: int, widths: tuple[int, ...], rows_dtype: torch.dtype, taken: bool
) -> None:
    """Other dtypes, and more linears than a kernel has room for."""
    parts = Fused(tuple(map(str, range(len(widths)))), widths)
    x, y = torch.ones(2, inner, dtype=rows_dtype), torch.ones(2, sum(widths), dtype=rows_dtype)
    assert HostLooker().takes(parts, x, y) is taken
    assert not HostLooker().takes(parts, x, y[:, :-1])
    assert not HostLooker().takes(parts, x, y[:1])
    assert not HostLooker().takes(parts, x[:1], y)
    assert not HostLooker().takes(parts, x, y.float())


def test_a_bias_is_added_only_where_it_gives_what_torch_gives() -> None:
    """float16 alone, of the right length, without gaps."""
    y = torch.ones(2, 8, dtype=torch.float16)
    looker, bias = HostLooker(), torch.ones(16, dtype=torch.float16)
    assert looker.adds(bias[:8], y)
    assert not looker.adds(bias, y)
    assert not looker.adds(bias[::2], y)
    assert not looker.adds(bias[1:9], y)
    assert not looker.adds(bias[:8].float(), y)
    assert not looker.adds(bias[:8].bfloat16(), y.bfloat16())


def test_on_a_cpu_there_is_no_kernel() -> None:
    assert looker_of(torch.device("cpu")) is None


def test_the_kernel_that_is_loaded_is_made_of_the_source_beside_it() -> None:
    """seen.ptx names the sha256 of the seen.cu that it was compiled from: `make ptx` after a change."""
    folder = files("gptq_diff.capture.cuda")
    source, image = folder.joinpath("seen.cu").read_bytes(), folder.joinpath("seen.ptx").read_text()
    assert image.splitlines()[0] == f"// made of seen.cu, sha256 {hashlib.sha256(source).hexdigest()}"


@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_the_kernel_assembles(arch: str) -> None:
    """Its PTX says an old version, so that old drivers take it, and must not use what came later."""
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("no ptxas on the PATH: it comes with the CUDA toolkit")
    with as_file(files("gptq_diff.capture.cuda").joinpath("seen.ptx")) as image:
        done = subprocess.run(
            [ptxas, f"-arch={arch}", "-o", os.devnull, image], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
