"""The models that faults are planted in: built once, kept in the user's cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from gptq_diff.faults.fault import Unplantable
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions

TINY = {
    "4bit-g64": BuildOptions(bits=4, group_size=64, kv_heads=4),
    "4bit-g32-gqa": BuildOptions(bits=4, group_size=32),
    "4bit-g128": BuildOptions(bits=4, group_size=128, kv_heads=4, hidden=256, intermediate=512),
    "4bit-g-1": BuildOptions(bits=4, group_size=-1, kv_heads=4),
    "4bit-asym-g32": BuildOptions(bits=4, group_size=32, kv_heads=4, sym=False),
    "4bit-asym-v2-g64": BuildOptions(bits=4, group_size=64, sym=False, checkpoint_format="gptq_v2"),
    "4bit-act-g32": BuildOptions(bits=4, group_size=32, kv_heads=4, desc_act=True),
    "4bit-asym-act-g64": BuildOptions(bits=4, group_size=64, sym=False, desc_act=True),
    "8bit-g32": BuildOptions(bits=8, group_size=32, kv_heads=4),
    "8bit-asym-g64": BuildOptions(bits=8, group_size=64, sym=False),
    "8bit-act-g32": BuildOptions(bits=8, group_size=32, kv_heads=4, desc_act=True),
    "3bit-g32": BuildOptions(bits=3, group_size=32, kv_heads=4),
    "3bit-asym-g64": BuildOptions(bits=3, group_size=64, sym=False, hidden=256, intermediate=512),
    "2bit-g64": BuildOptions(bits=2, group_size=64, kv_heads=4),
    "2bit-asym-g64": BuildOptions(bits=2, group_size=64, kv_heads=4, sym=False),
    "2bit-asym-v2-g32": BuildOptions(bits=2, group_size=32, kv_heads=4, sym=False, checkpoint_format="gptq_v2"),
}
"""Name -> options of tiny-qwen2."""

SMOLLM2 = {
    "smollm2-g64": BuildOptions(),
    "smollm2-act-g64": BuildOptions(desc_act=True),
    "smollm2-8bit-g32": BuildOptions(bits=8, group_size=32),
}
"""Name -> options of SmolLM2-135M-Instruct."""

SEEDS = 5
"""Tiny models of each kind, with other weights."""
START = 510
"""<|im_start|> of tiny-qwen2: a first token that can be massive."""


@dataclass(frozen=True)
class ModelChoice:
    """A model by name, and the seed of its weights where they are random."""

    name: str
    seed: int = 0

    @property
    def tiny(self) -> bool:
        """Whether it is a random one."""
        return self.name in TINY

    def __str__(self) -> str:
        return f"{self.name}#{self.seed}" if self.tiny else self.name

    def path(self) -> Path:
        """Its directory, built at the first use."""
        return _built(self)


@cache
def _built(choice: ModelChoice) -> Path:
    if choice.tiny:
        return build_model("tiny-qwen2", replace(TINY[choice.name], seed=choice.seed))
    return build_model("smollm2", SMOLLM2[choice.name])


def draw_model(rng: np.random.Generator, usable: Callable[[BuildOptions], bool], small: float) -> ModelChoice:
    """One of the usable models; `small` is the share of SmolLM2 where it is usable."""
    real = [name for name, options in SMOLLM2.items() if usable(options)]
    if real and rng.random() < small:
        return ModelChoice(str(rng.choice(real, p=_mostly_first(len(real)))))
    tiny = [name for name, options in TINY.items() if usable(options)]
    if not tiny:
        raise Unplantable("no model has what all of it needs")
    return ModelChoice(str(rng.choice(tiny)), int(rng.integers(SEEDS)))


def _mostly_first(count: int) -> list[float]:
    """SmolLM2 as the demo has it in most cases: each further one takes a minute to build and 110 MB."""
    return [1.0] if count == 1 else [0.6] + [0.4 / (count - 1)] * (count - 1)


ENGLISH = (
    "The capital of France is", "Write a haiku about rounding errors.", "Why is the sky blue? Answer in one sentence.",
    "def fibonacci(n):", "List three primes larger than 100.", "Translate to German: good morning", "1 2 3 4 5 6 7 8 9",
    "Once upon a time in a small village by the sea there lived an old fisherman who spoke to the gulls every day.",
)  # fmt: skip


@cache
def texts_of(path: Path) -> tuple[tuple[int, ...], ...]:
    """A few texts, as chat messages, in that model's tokens."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    chats = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in ENGLISH]
    return tuple(tuple(tokenizer.encode(text).ids) for text in chats)


def draw_prompt(rng: np.random.Generator, choice: ModelChoice, longest: int = 90) -> tuple[int, ...]:
    """Token ids: for a tiny model mostly random ones after a first token, else one of the texts."""
    if not choice.tiny or rng.random() < 0.3:
        ids = texts_of(choice.path())[int(rng.integers(len(ENGLISH)))]
        return ids[:longest]
    least = 1 if rng.random() < 0.1 else 4
    length = round(2 ** float(rng.uniform(np.log2(least), np.log2(longest))))
    start = START if rng.random() < 0.8 else int(rng.integers(509))
    return (start, *(int(i) for i in rng.integers(0, 509, length - 1)))
