"""The sum over ranks as a step: the summand and the sum, staged, whether the all-reduce works in place or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gptq_diff.capture import tap as taps
from gptq_diff.capture.call import ALL_REDUCE
from gptq_diff.capture.looks import HostLooker
from gptq_diff.capture.numbering import Known
from gptq_diff.capture.stage import Stage
from gptq_diff.capture.tap import Tap
from gptq_diff.engines.vllm.reduced import Buffers, Reduced
from gptq_diff.errors import CaptureError
from tests.capture.toy_modules import Copying

K, N = 4, 6


class Method:
    """A kernel whose output says which prompt it was."""

    def __init__(self) -> None:
        self.prompt = 0

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return x.sum(dim=-1, keepdim=True).expand(-1, N) + self.prompt


class RowParallel(nn.Module):
    """Multiplies and "reduces": the sum over the ranks is three times the summand. Then the engine overwrites it."""

    def __init__(self, *, in_place: bool, reduces: bool = True, hands_on_a_copy: bool = False) -> None:
        super().__init__()
        self.quant_method = Method()
        self.in_place, self.reduces, self.hands_on_a_copy = in_place, reduces, hands_on_a_copy

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        if not self.reduces:
            return x, None
        y = self.quant_method.apply(self, x)
        total = y.mul_(3) if self.in_place else y * 3
        return total.clone() if self.hands_on_a_copy else total, None


@pytest.fixture(autouse=True)
def everything_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "asks_later", lambda _: True)


def prompt(
    reduced: Reduced, module: Any, stage: Stage, rows: int, number: int, dtype: torch.dtype = torch.float32
) -> None:
    """One prompt of two modules, of which the first only opens the chunk; what the sink got is checked."""
    sink, x = Copying(), torch.arange(rows * K, dtype=dtype).view(rows, K)
    module.quant_method.prompt = number
    with Tap(frozenset({"first", "o"}), sink) as tap:
        tap.stage_in(stage, Known())
        tap.begin_step(0)
        tap.record("first", x.clone(), x.clone(), "p")
        with reduced.watched(tap):
            total, _ = module(x)
            total.zero_()  # a normalisation works in place
        tap.end_step()
    summand = x.sum(dim=-1, keepdim=True).expand(-1, N) + number
    ours, whole = sink.tensors[0, "o"]
    assert ours is not None
    assert whole is not None
    assert torch.equal(ours, summand)
    assert torch.equal(whole, summand * 3)
    assert sink.calls[-1].path == ALL_REDUCE
    assert "apply" not in vars(module.quant_method)
    assert "forward" not in vars(module)


@pytest.mark.parametrize("looker", [None, HostLooker()], ids=["by torch", "looked at"])
@pytest.mark.parametrize("hands_on_a_copy", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_the_summand_and_the_sum_are_those_of_the_call(
    in_place: bool, hands_on_a_copy: bool, looker: HostLooker | None
) -> None:
    """Prompt after prompt, many rows and one; a summand that the all-reduce overwrites is copied before it.

    Also where it overwrites it and hands on a copy of the sum: that the sum lies elsewhere proves nothing.
    """
    module, stage = RowParallel(in_place=in_place, hands_on_a_copy=hands_on_a_copy), Stage()
    stage.looker = looker
    reduced = Reduced("o", module, N, stage, Buffers())
    for number, rows in enumerate((3, 3, 5, 1, 1, 3)):
        prompt(reduced, module, stage, rows, number, torch.float32 if looker is None else torch.float16)


def test_a_module_that_ran_no_kernel_is_refused() -> None:
    module, stage = RowParallel(in_place=False, reduces=False), Stage()
    reduced = Reduced("o", module, N, stage, Buffers())
    tap = Tap(frozenset({"o"}), Copying())
    tap.begin_step(0)
    with reduced.watched(tap), pytest.raises(CaptureError, match="o was reduced without a kernel call"):
        module(torch.ones(2, K))


def test_a_summand_is_copied_until_the_sum_was_seen_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """By numbers of rows, and for all modules of a width at once."""
    copied: list[int] = []
    clone = torch.Tensor.clone

    def counted(t: torch.Tensor, **options: Any) -> torch.Tensor:
        copied.append(len(t))
        return clone(t, **options)

    buffers, stage = Buffers(), Stage()
    modules = [RowParallel(in_place=False) for _ in range(2)]
    tap = Tap(frozenset({"a", "b"}), Copying())
    tap.stage_in(stage, Known())
    for rows in (3, 3, 1, 3):
        tap.begin_step(0)
        for name, module in zip("ab", modules):
            reduced = Reduced(name, module, N, stage, buffers)
            with reduced.watched(tap), monkeypatch.context() as patched:
                patched.setattr(torch.Tensor, "clone", counted)
                module(torch.ones(rows, K))
        tap.end_step()
    assert copied == [3, 1]


def test_an_all_reduce_that_begins_to_work_in_place_is_said_once() -> None:
    """The summand is lost then; the next prompt has it."""
    module, stage, sink = RowParallel(in_place=False), Stage(), Copying()
    reduced = Reduced("o", module, N, stage, Buffers())
    prompt(reduced, module, stage, 3, 0)
    module.in_place = True
    tap = Tap(frozenset({"o"}), sink)
    tap.begin_step(0)
    with reduced.watched(tap), pytest.raises(CaptureError, match="overwrote the summand of o"):
        module(torch.ones(3, K))
    prompt(reduced, module, stage, 3, 1)
