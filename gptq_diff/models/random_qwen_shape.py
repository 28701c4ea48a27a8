"""The shapes of a random Qwen2 model and where its linears stand."""

from __future__ import annotations

from dataclasses import dataclass

from gptq_diff.errors import UsageError
from gptq_diff.models.options import QuantFormat
from gptq_diff.models.packed_tensors import layer_spec
from gptq_diff.records import LayerSpec


@dataclass(frozen=True)
class QwenShape:
    """Shapes of a Qwen2 model.

    hidden, intermediate: channels of the residual stream, of the MLP; blocks: decoder blocks; heads, kv_heads: query
    heads, key and value heads; vocabulary: rows of the embedding; first_special: id of <|endoftext|>, which
    <|im_start|> and <|im_end|> follow.
    """

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int
    first_special: int

    def __post_init__(self) -> None:
        if min(self.hidden, self.intermediate, self.blocks, self.heads, self.kv_heads) < 1:
            raise UsageError("--hidden, --intermediate, --blocks, --heads and --kv-heads must be at least 1")
        if self.hidden % self.heads or self.heads % self.kv_heads or self.head_dim % 2:
            raise UsageError(
                f"--heads {self.heads} must divide --hidden {self.hidden} into an even head size, and --kv-heads "
                f"{self.kv_heads} must divide --heads"
            )
        for option, width in (("hidden", self.hidden), ("intermediate", self.intermediate)):
            if width % 32 or width < 64:
                raise UsageError(f"--{option} {width} is not a multiple of 32 from 64 up, as packing needs")
        if self.kv_width % 32:
            raise UsageError(f"keys and values would have {self.kv_width} channels, which is not a multiple of 32")

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        """Channels of all keys."""
        return self.head_dim * self.kv_heads

    @property
    def massive_channel(self) -> int:
        """The down_proj input channel that is massive on the first token (gptq_diff.models.massive)."""
        return 2 * self.intermediate // 3

    def linears(self, block: int, quant: QuantFormat) -> dict[str, LayerSpec]:
        """The seven linears of a block by their part of the name, in the order in which they run."""
        widths = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.hidden, self.kv_width),
            "self_attn.v_proj": (self.hidden, self.kv_width),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }
        return {
            part: layer_spec(
                f"model.layers.{block}.{part}", k, n, quant, bias=part.endswith(("q_proj", "k_proj", "v_proj"))
            )
            for part, (k, n) in widths.items()
        }

    def check_groups(self, group_size: int) -> None:
        """Refuse a group size that does not divide both widths: engines disagree about a last, shorter group."""
        if group_size != -1 and (self.hidden % group_size or self.intermediate % group_size):
            raise UsageError(
                f"--group-size {group_size} does not divide --hidden {self.hidden} and --intermediate "
                f"{self.intermediate}"
            )
