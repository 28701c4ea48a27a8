"""Memory beside the engine's tensors that calls are copied to."""

from __future__ import annotations

import torch

from gptq_diff.capture.ways import Views, views_of

MOST_VIEWS = 4096
"""Of one strip, after which they are made anew: prompts of many lengths each have their own."""
Key = tuple[int, "tuple[int, ...]", "tuple[int, ...]"]


class Strip:
    """Flat memory; views: those made of it so far, by offset and the shapes of x and y.

    told: int32, for the figures of calls that are looked at; None where calls are copied without.
    values_at, told_at: their addresses.
    """

    __slots__ = ("number", "told", "told_at", "values", "values_at", "views")

    def __init__(self, number: int, values: torch.Tensor, told: torch.Tensor | None = None) -> None:
        self.number = number
        self.values = values
        self.told = told
        self.values_at, self.told_at = (0 if t is None else t.data_ptr() for t in (values, told))
        self.views: dict[Key, Views] = {}

    def view(self, at: int, x_MK: torch.Tensor, y_MN: torch.Tensor) -> Views:
        """Of as many values from there on as x and y have: made now, or found."""
        found = self.views.get((at, x_MK.shape, y_MN.shape))
        if found is None:
            if len(self.views) >= MOST_VIEWS:
                self.views.clear()
            flat = self.values.narrow(0, at, x_MK.numel() + y_MN.numel())
            found = self.views[at, x_MK.shape, y_MN.shape] = views_of(flat, x_MK.shape, y_MN.shape)
        return found
