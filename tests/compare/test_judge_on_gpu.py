"""Judging on a GPU gives the verdict of the CPU, and what it is made of to the last few digits."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.packing import pack_rows, pack_zeros
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.compare.judge import CapturedCall
from gptq_diff.compare.judge_run import judge_calls, weight_of
from gptq_diff.compare.place import judging_device, room_beside
from gptq_diff.numerics.floors import MODELS
from gptq_diff.records import ORIGINAL, Judgement, LayerSpec
from tests.devices import DEVICES, in_force

K, N, GROUP = 256, 64, 64
INF, NAN = float("inf"), float("nan")


def a_linear(*, desc_act: bool = False, broken: bool = False) -> PackedLinear:
    draw = torch.Generator().manual_seed(3)
    spec = LayerSpec("layer", K, N, 4, GROUP, sym=True, desc_act=desc_act, format="gptq", has_bias=True)
    codes_KN = torch.randint(0, 16, (K, N), generator=draw)
    scales_GN = (torch.rand(K // GROUP, N, generator=draw) * 0.02 + 0.01).half()
    if broken:
        scales_GN[1, 5] = NAN
    g_idx = (torch.randperm(K, generator=draw) // GROUP).int() if desc_act else None
    zeros = pack_zeros(torch.full((K // GROUP, N), 8), 4, "gptq")
    return PackedLinear(spec, pack_rows(codes_KN, 4), zeros, scales_GN, g_idx, torch.rand(N, generator=draw).half())


def calls_of(linear: PackedLinear) -> list[CapturedCall]:
    """Of every path: as it should be, with one column off, with rounding that only partial sums explain, and lost."""
    draw, found = torch.Generator().manual_seed(4), []
    w_KN = torch.nan_to_num(dequantise(linear).double(), 0.0)
    for index, path in enumerate(MODELS):
        dtype = torch.float32 if path == "exact" else torch.float16
        x_MK = torch.randn(9, K, generator=draw)
        x_MK[2, : K // 2] = 50.0 + torch.rand(K // 2, generator=draw)  # halves that cancel: large sums on the way
        x_MK[2, K // 2 :] = -x_MK[2, : K // 2]
        x_MK[4, 7] = 3000.0
        x_MK = x_MK.to(dtype)
        y_MN = x_MK.double() @ w_KN
        for step, change in enumerate(("sound", "column", "rounding", "lost", "input")):
            x, y = x_MK.clone(), y_MN.to(dtype)
            if change == "column":
                y[:, 11] *= 1.05
            if change == "rounding":
                y[2] += 0.5
            if change == "lost":
                y[1, 3], y[6, 5] = INF, NAN
            if change == "input":
                x[3, 0] = NAN
                y[3] = NAN
            found.append(CapturedCall(step, index, path, x, y, x_MK if step else None))
        found.append(CapturedCall(5, index, path, x_MK[:1], y_MN[:1].to(dtype), x_MK[:1] * 1.01))
    x_MK = torch.randn(3, K, generator=draw)
    found.append(CapturedCall(0, 50, ORIGINAL, x_MK, (x_MK.double() @ w_KN).float() * 1.01, None))
    return found


def same(ours: Judgement, theirs: Judgement) -> None:
    """Words, counts and places alike; figures nearly so, for sums are made in another order and precision."""
    for field in dataclasses.fields(Judgement):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(a, float) and isinstance(b, float):
            # a reference's own error is one of the last digits, and differs between two sums as much as it is
            loose = 0.5 if ours.path == "exact" and field.name in ("local_l2_rel", "max_abs", "excess") else 1e-2
            assert a == pytest.approx(b, rel=loose, abs=1e-9), (theirs.path, theirs.step, field.name)
        elif field.name != "worst_row" or ours.kind != "ok":
            assert a == b, (theirs.path, theirs.step, field.name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", [{}, {"desc_act": True}, {"broken": True}], ids=["plain", "desc_act", "broken scale"])
def test_the_verdict_is_that_of_the_cpu(device: str, how: dict[str, Any]) -> None:
    """Every path, calls that are sound, wrong, lost, inherited; the sharper figures are asked for in both places."""
    linear = a_linear(**how)
    calls = calls_of(linear)
    there_rows: list[Any] = []
    here_rows: list[Any] = []
    here = judge_calls(weight_of(linear, None), calls, here_rows)
    with in_force(device) as name:
        there = judge_calls(weight_of(linear.to(name), None), calls, there_rows)
    assert len(here) == len(there) == len(calls)
    for ours, theirs in zip(there, here):
        same(ours, theirs)
    kinds = {j.kind for j in here}
    assert {"ok", "diverged", "overflow"} <= kinds
    for ours, theirs in zip(there_rows, here_rows):
        assert ours.shape == theirs.shape
        assert (ours[:, 3] == theirs[:, 3])[~torch.isnan(torch.from_numpy(theirs[:, 3])).numpy()].all()


@pytest.mark.parametrize(
    ("asked", "gpu", "free", "expected"),
    [
        ("", True, 1 << 40, "cuda"), ("auto", True, 1 << 40, "cuda"), ("cuda:1", True, 1 << 40, "cuda:1"),
        ("cpu", True, 1 << 40, "cpu"), ("", False, 1 << 40, "cpu"), ("", True, 1000, "cpu"),
    ],
)  # fmt: skip
def test_a_gpu_judges_where_there_is_one_with_room(
    monkeypatch: pytest.MonkeyPatch, asked: str, gpu: bool, free: int, expected: str
) -> None:
    """By itself, unless the CPU was asked for; a GPU that is full is left alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))
    assert str(judging_device(asked, [a_linear().spec])) == expected


@pytest.mark.parametrize(("device", "more", "expected"), [("cuda", 1, True), ("cuda", -1, False), ("cpu", 1, False)])
def test_a_gpu_judges_beside_an_engine_where_both_have_room(
    monkeypatch: pytest.MonkeyPatch, small_model: Path, device: str, more: int, expected: bool
) -> None:
    """1.5 checkpoints for the engine; four times what the largest linear takes for the judge. Never on a CPU."""
    with open_checkpoint(small_model) as model:
        files = sum(len(file.read_bytes()) for file in small_model.glob("*.safetensors"))
        assert files * 0.9 < model.nbytes < files
        largest = max(spec.in_features * spec.out_features for spec in model.layers)
        free = int(1.5 * model.nbytes) + 4 * 24 * largest + 2 * more
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))
        assert room_beside(torch.device(device), model, model) is expected


def test_a_gpu_without_room_for_a_linear_leaves_it_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may have taken the memory meanwhile; the linear is judged all the same."""
    from gptq_diff.compare import judge_run

    linear, asked = a_linear(), []
    real = judge_run.judge_calls

    def short_of_memory(weight: Any, calls: Any, single: Any) -> Any:
        asked.append(weight.device)
        single.append("half done")
        if len(asked) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        single.clear()
        return real(weight, calls, single)

    class Judge:
        def packed(self, name: str) -> PackedLinear:
            return linear

    monkeypatch.setattr(judge_run, "judge_calls", short_of_memory)
    single: list[Any] = []
    calls = calls_of(linear)[:2]
    judge: Any = Judge()
    found = judge_run._judged_there(linear, judge, judge, torch.empty(K * N), calls, single)
    assert [j.kind for j in found] == ["ok", "diverged"]
    assert len(single) == 2
    assert not math.isnan(found[0].excess or 0.0)
