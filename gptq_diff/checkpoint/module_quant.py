"""How single modules are quantised: the settings of one linear, and GPTQModel's `dynamic` that changes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gptq_diff.errors import CheckpointError

_BITS = (2, 3, 4, 8)
SETTINGS = ("bits", "group_size", "sym", "desc_act")  # the fields of LayerQuant, as config files spell them


@dataclass(frozen=True)
class LayerQuant:
    """How one linear is quantised.

    bits: 2, 3, 4 or 8.
    group_size: rows of K that share a scale, or -1 for all of them.
    sym: True for symmetric quantisation.
    desc_act: True when rows were quantised in the order of their activations, so that g_idx is needed.
    """

    bits: int
    group_size: int
    sym: bool
    desc_act: bool


@dataclass(frozen=True)
class Override:
    """One entry of GPTQModel's `dynamic`: modules whose name the pattern matches at its start.

    excluded: True for `-:` keys, whose modules are not quantised.
    values: the fields of LayerQuant that differ; None keeps the checkpoint's own.
    """

    pattern: re.Pattern[str]
    excluded: bool
    bits: int | None = None
    group_size: int | None = None
    sym: bool | None = None
    desc_act: bool | None = None


def parse_overrides(raw: object, source: str) -> tuple[Override, ...]:
    """The entries of `dynamic`, in order; null and false mean none."""
    if raw is None or raw is False:
        return ()
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{source} has a 'dynamic' that is no object of regex keys; restore the original file")
    return tuple(_override(str(key), values, source) for key, values in raw.items())


def _override(key: str, values: object, source: str) -> Override:
    excluded = key.startswith("-:")
    try:
        pattern = re.compile(key[2:] if key[:2] in ("-:", "+:") else key)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{source} has the 'dynamic' key {key!r}, which is no valid regex ({error})") from error
    if excluded:
        return Override(pattern, excluded=True)
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{source} gives the 'dynamic' key {key!r} something that is not an object of settings")
    where = f"{source}, dynamic key {key!r},"
    return Override(
        pattern,
        excluded=False,
        bits=parse_bits(values["bits"], where) if "bits" in values else None,
        group_size=parse_group_size(values["group_size"], where) if "group_size" in values else None,
        sym=parse_flag(values["sym"], "sym", where) if "sym" in values else None,
        desc_act=parse_flag(values["desc_act"], "desc_act", where) if "desc_act" in values else None,
    )


def parse_bits(value: object, where: str) -> int:
    """`bits`, checked."""
    if type(value) is not int or value not in _BITS:
        raise CheckpointError(f"{where} says bits {value!r}, and GPTQ packs 2, 3, 4 or 8 bits only")
    return value


def parse_group_size(value: object, where: str) -> int:
    """`group_size`, checked; -1 stays -1."""
    if type(value) is not int or (value < 1 and value != -1):
        raise CheckpointError(f"{where} says group_size {value!r}, which is neither -1 nor a positive number")
    return value


def parse_flag(value: object, key: str, where: str) -> bool:
    """A setting that is true or false, checked."""
    if type(value) is not bool:
        raise CheckpointError(f"{where} says {key} {value!r}, which is neither true nor false")
    return value
