"""The two random models that can be built by name.

`tiny-qwen2`: 4 blocks, 600 kB, built in a moment, in every bit width and group size.

`synthetic-qwen2.5-32b`: 18 GB; its shapes are those of
https://huggingface.co/Qwen/Qwen2.5-32B-Instruct-GPTQ-Int4/blob/main/config.json, and `--blocks N` makes a slice of it.

Both say nothing sensible, and both have a massive activation of about 3000 in down_proj's input on the first token in
every block (gptq_diff.models.massive).

The synthetic model has the tiny model's tokenizer, its special tokens at real Qwen's ids; all other ids of the 152064
rows of its embedding are valid as token_ids, and prompts tokenised by real Qwen's tokenizer begin with the right id.
"""

from __future__ import annotations

from gptq_diff.models.options import GainShift
from gptq_diff.models.random_qwen import RandomQwen
from gptq_diff.models.random_qwen_shape import QwenShape

TINY_QWEN2 = RandomQwen(
    name="tiny-qwen2",
    version=2,
    shape=QwenShape(hidden=128, intermediate=256, blocks=4, heads=4, kv_heads=2, vocabulary=512, first_special=509),
    bits=4,
    group_size=64,
)

# Channel 170 of block 1's down_proj input becomes 24000 on the first token: 7 * 24000 overflows fp16 accumulators that
# hold unscaled products (4 bits; 3 * 24000 does with 3 bits), while the exact outputs stay below 20.
TINY_QWEN2_OVERFLOW = GainShift(block=1, group=2, gain=8)

SYNTHETIC_QWEN25_32B = RandomQwen(
    name="synthetic-qwen2.5-32b",
    version=2,
    shape=QwenShape(
        hidden=5120, intermediate=27648, blocks=64, heads=40, kv_heads=8, vocabulary=152064, first_special=151643
    ),
    bits=4,
    group_size=128,
)

# Channel 18432 of block 31's down_proj input becomes 12000 on the first token: 7 * 12000 overflows.
SYNTHETIC_QWEN25_32B_OVERFLOW = GainShift(block=31, group=144, gain=4)
