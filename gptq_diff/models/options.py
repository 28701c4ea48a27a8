"""What can be asked of `model build`: frozen records, and the gain shift as it is written on the command line."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from gptq_diff.errors import UsageError


@dataclass(frozen=True)
class GainShift:
    """A power of two moved from one group of down_proj's scales into up_proj's (gptq_diff.models.gain_shift).

    block: index of the decoder block, from 0.
    group: index of the group of down_proj's input channels.
    gain: by how much those channels' activations grow; a power of two.
    """

    block: int
    group: int
    gain: float

    def __post_init__(self) -> None:
        if self.gain <= 0 or not math.isfinite(self.gain) or math.frexp(self.gain)[0] != 0.5:
            raise UsageError(f"the gain {self.gain:g} is not a power of two, so scales times it would be rounded")

    def __str__(self) -> str:
        return f"{self.block}:{self.group}:{self.gain:g}"

    @classmethod
    def parse(cls, text: str) -> GainShift:
        """Read `BLOCK:GROUP:GAIN`, for example `11:19:4`."""
        try:
            block, group, gain = text.split(":")
            return cls(int(block), int(group), float(gain))
        except ValueError:
            raise UsageError(
                f"the gain shift {text!r} is not BLOCK:GROUP:GAIN", hint="for example --gain-shift 11:19:4"
            ) from None


@dataclass(frozen=True)
class BuildOptions:
    """The options of `model build`; None means the model's own default.

    bits: 2, 3, 4 or 8.
    group_size: rows of K that share a scale; -1 for one group a column.
    sym: symmetric: every zero point is 2^(bits - 1).
    desc_act: a g_idx that is a real permutation, as GPTQ's activation order writes it.
    checkpoint_format: "gptq" (v1, zero - 1 is stored) or "gptq_v2".
    ambiguous_zeros: random asymmetric models only: let zero points reach 2^bits, stored as 2^bits - 1 in v1, which
        engines read differently.
    hidden, intermediate, blocks, heads, kv_heads: shapes of the random models; channels, MLP channels, decoder blocks,
        query heads, key and value heads.
    seed: of every random number (weights of the random models, order of the channels under desc_act).
    gain_shift: None for none.
    """

    bits: int | None = None
    group_size: int | None = None
    sym: bool | None = None
    desc_act: bool | None = None
    checkpoint_format: str | None = None
    ambiguous_zeros: bool | None = None
    hidden: int | None = None
    intermediate: int | None = None
    blocks: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    seed: int | None = None
    gain_shift: GainShift | None = None

    def given(self) -> dict[str, object]:
        """The options that are not None, by name; the gain shift as text."""
        named = {name: value for name, value in asdict(self).items() if value is not None}
        if self.gain_shift is not None:
            named["gain_shift"] = str(self.gain_shift)
        return named


@dataclass(frozen=True)
class QuantFormat:
    """How every linear of one built model is quantised: the options of that name with nothing left open."""

    bits: int
    group_size: int
    sym: bool
    desc_act: bool
    checkpoint_format: str
    ambiguous_zeros: bool

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8):
            raise UsageError(f"--bits {self.bits} is not 2, 3, 4 or 8")
        if self.group_size != -1 and (self.group_size < 32 or self.group_size % 32):
            raise UsageError(f"--group-size {self.group_size} is neither -1 nor a multiple of 32")
        if self.checkpoint_format not in ("gptq", "gptq_v2"):
            raise UsageError(f"the checkpoint format {self.checkpoint_format!r} is neither gptq nor gptq_v2")
        if self.ambiguous_zeros and self.sym:
            raise UsageError("ambiguous zeros need --no-sym: a symmetric zero point is always half the range")

    @classmethod
    def resolve(cls, options: BuildOptions, *, bits: int, group_size: int) -> QuantFormat:
        """The options' quantisation, with these defaults for what they leave open."""
        return cls(
            bits=bits if options.bits is None else options.bits,
            group_size=group_size if options.group_size is None else options.group_size,
            sym=True if options.sym is None else options.sym,
            desc_act=bool(options.desc_act),
            checkpoint_format=options.checkpoint_format or "gptq",
            ambiguous_zeros=bool(options.ambiguous_zeros),
        )

    @property
    def highest_zero(self) -> int:
        """The highest zero point a random asymmetric linear may have."""
        levels = 1 << self.bits
        return levels if self.ambiguous_zeros and self.checkpoint_format == "gptq" else levels - 1

    def rows_per_group(self, in_features: int) -> int:
        """The group size in rows of K: K itself for -1."""
        return in_features if self.group_size == -1 else min(self.group_size, in_features)
