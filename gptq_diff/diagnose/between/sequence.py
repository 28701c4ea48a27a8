"""One capture as a sequence of tokens: what its linears took and gave, all steps' rows below each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gptq_diff.capture.tap import ALL_REDUCE, BIAS, stored_name
from gptq_diff.compare.judge import CapturedCall

if TYPE_CHECKING:
    from gptq_diff.compare.align import Captured


@dataclass(frozen=True)
class Missing(Exception):  # noqa: N818  it is no error: it says what is not judged, and why
    """A tensor that an interval needs and the capture does not hold."""

    reason: str


class Sequence:
    """The captured steps of one prompt.

    token_ids: what was fed, as many as there are rows. spans: the rows of each step. dtype: of the skeleton.
    """

    def __init__(self, captured: Captured, token_ids: tuple[int, ...], steps: int) -> None:
        self._captured = captured
        self._reader = captured.reader
        self.token_ids = token_ids
        self.steps = steps
        prompt = len(token_ids) - (steps - 1)
        self.spans = [slice(0, prompt), *(slice(prompt + s, prompt + s + 1) for s in range(steps - 1))]

    @property
    def rows(self) -> int:
        """Tokens that were fed."""
        return len(self.token_ids)

    def step_input(self, step: int, layer: str) -> torch.Tensor:
        """[m, K]: what that linear took in one step, the ranks' shares side by side; a view, not to be written to."""
        whole = self._get(step, layer, "in")
        if whole is not None:
            return whole
        shares = [p for p in self._captured.places.get(layer, ()) if p.step == step and p.part.isdigit()]
        parts = [self._get(step, p.stored, "in") for p in sorted(shares, key=lambda p: p.first)]
        if not parts or any(part is None for part in parts):
            raise Missing(f"the input of {layer} was not captured, or left out")
        return torch.cat([part for part in parts if part is not None], dim=1)

    def _step_output(self, step: int, layer: str) -> tuple[torch.Tensor, bool]:
        """[M, N] that the linear gave, and whether its bias is in it (it is in a sum over ranks)."""
        whole = self._get(step, layer, "out")
        if whole is not None:
            return whole, False
        total = self._get(step, stored_name(layer, ALL_REDUCE), "out")
        if total is None:
            raise Missing(f"the output of {layer} was not captured, or left out")
        return total, True

    def bias_call(self, layer: str) -> CapturedCall | None:
        """The captured step of that linear's bias; None where there is none."""
        stored = stored_name(layer, BIAS)
        before, after = self._get(0, stored, "in"), self._get(0, stored, "out")
        if before is None or after is None:
            return None
        return CapturedCall(
            step=0, index=0, path=BIAS, x_MK=before, y_MN=after, reference_x=None, inherited_l2_rel=None, part=BIAS
        )

    def input(self, layer: str) -> torch.Tensor:
        """[T, K] over all steps; Missing where a step dropped rows that nobody reads."""
        return self._stacked([self.step_input(step, layer) for step in range(self.steps)], layer)

    def output(self, layer: str, bias_N: torch.Tensor | None) -> torch.Tensor:
        """[T, N]: the linear's product with its bias added as engines add it, in the skeleton's dtype."""
        found = [self._step_output(step, layer) for step in range(self.steps)]
        y_TN = self._stacked([y for y, _ in found], layer)
        return y_TN if bias_N is None or found[0][1] else y_TN + bias_N.to(y_TN.dtype)

    def _stacked(self, parts: list[torch.Tensor], layer: str) -> torch.Tensor:
        if [part.shape[0] for part in parts] != [span.stop - span.start for span in self.spans]:
            raise Missing(f"{layer} saw other rows than the tokens that were fed")
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _get(self, step: int, stored: str, side: str) -> torch.Tensor | None:
        return self._reader.tensor(step, stored, side) if self._reader.has(step, stored, side) else None


def sequence_of(captured: Captured, prompt_ids: tuple[int, ...]) -> Sequence | str:
    """The capture as a sequence, or why it cannot be told what was fed."""
    manifest = captured.reader.manifest
    if manifest.cached_rows:
        return "rows of the prompt came from a prefix cache"
    fed = manifest.tokens
    if manifest.forced:
        if captured.reference is None:
            return Sequence(captured, prompt_ids, 1)
        fed = captured.reference.manifest.tokens
    return Sequence(captured, (*prompt_ids, *fed[: manifest.steps - 1]), manifest.steps)
