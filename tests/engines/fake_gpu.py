"""A GPU that is not there: tensors sent to it stay in main memory, and mixing them with others is an error.

The numbers are the CPU's, so that what runs on it can be compared; what fails on it would fail on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gptq_diff.capture.lanes import Find, HostLane, Shipped

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested arguments or results."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)


class FakeLane(HostLane):
    """Copies staged on that GPU."""

    def staged(self, values: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(values, dtype=dtype, device="cuda")

    def ship(self, staged: torch.Tensor, find: Find, landing: torch.Tensor | None) -> Shipped:
        shipped = super().ship(staged, find, landing)
        shipped.figures = shipped.figures.cpu()
        return shipped


class FakeGpu(TorchFunctionMode):
    """While it is in force, `cuda` and `cuda:0` are devices; moved: bytes sent there, one entry a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used again
        self.moved: list[int] = []

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor, or what it is a view of, is on the GPU."""
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage().data_ptr() in self._storages and tensor.numel() > 0

    def _put(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage
        return tensor

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return GPU if self.holds(args[0]) else func(*args)
        if func == torch.Tensor.is_cuda.__get__:
            return self.holds(args[0])
        if func in (torch.Tensor.to, torch.Tensor.cpu):
            return self._moved(func, args, kwargs)
        if func == torch.Tensor.numpy and self.holds(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        asked = kwargs.pop("device", None)
        given = list(tensors_in([args, kwargs]))
        here = [self.holds(t) for t in given if t.dim() and t.numel()]
        if any(here) and not all(here) and func not in (torch.Tensor.copy_, torch.Tensor.__getitem__):
            raise RuntimeError(f"Expected all tensors to be on the same device ({func})")
        result = func(*args, **kwargs)
        wanted = torch.device(asked) == GPU or asked == "cuda" if asked is not None else any(map(self.holds, given))
        if wanted:
            for tensor in tensors_in(result):
                self._put(tensor)
        return result

    def _moved(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """Tensor.to and Tensor.cpu: a copy where the device changes, else what torch gives."""
        tensor, *rest = args
        device = CPU if func == torch.Tensor.cpu else kwargs.pop("device", None)
        if rest and isinstance(rest[0], (str, torch.device)):
            device = rest.pop(0)
        elif rest and isinstance(rest[0], torch.Tensor):
            device = rest[0].device
        if device is not None and torch.device(device).type == "meta":
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        now = self.holds(tensor)
        there = now if device is None else torch.device(device).type == "cuda"
        result: torch.Tensor = torch.Tensor.to(tensor, *rest, **kwargs) if rest or kwargs else tensor
        if there != now:
            result = result.clone() if result is tensor else result
        if there and not now:
            self.moved.append(result.nbytes)
        return self._put(result) if there else result
