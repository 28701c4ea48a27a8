"""Whether --reference-model is a sound copy of --model: the same network, whatever its numbers are."""

from __future__ import annotations

from collections.abc import Mapping

from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.errors import UsageError

Shape = tuple[int, int, int, int]
"""In features, out features, bits, group size."""


def check_same_shape(model: Checkpoint, reference: Checkpoint) -> None:
    """UsageError unless both have the same layers with the same shapes, bits and group sizes."""
    ours = {s.name: (s.in_features, s.out_features, s.bits, s.group_size) for s in model.layers}
    theirs = {s.name: (s.in_features, s.out_features, s.bits, s.group_size) for s in reference.layers}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            why = _difference(name, ours, theirs)
            raise UsageError(
                f"--reference-model {reference.path} does not fit --model {model.path}: {why}",
                "give the sound copy of the same checkpoint",
            )


def _difference(name: str, ours: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> str:
    if name not in ours or name not in theirs:
        return f"only the {'reference' if name in theirs else 'model'} has {name}"
    words = [f"{k} x {n}, {bits} bit, group size {group}" for k, n, bits, group in (ours[name], theirs[name])]
    return f"{name} is {words[0]} in the model and {words[1]} in the reference"
