"""Fifty varied prompts, and what a healthy model must show on all of them: no finding at all."""

from __future__ import annotations

import json

import numpy as np

ENGLISH = "The quick brown fox jumps over the lazy dog while seven wizards quietly boil exotic tea near the harbour."
CHINESE = "今天天气很好，我们一起去公园散步吧。人工智能正在改变世界，但是数字仍然会四舍五入。请用一句话解释什么是量化。"
CODE = "def norm(x):\n    return sum(v * v for v in x) ** 0.5\n\nfor (int i = 0; i < n; ++i) { y[i] += a[i] * b[i]; }\n"


def texts():
    """English, Chinese, code, mixtures, one character, repetitions: 44 texts of many lengths."""
    made = ["!", "a", "中", "{", "1"]
    for source in (ENGLISH, CHINESE, CODE):
        made += [source, source[: len(source) // 3], source[len(source) // 2 :], source * 2, source[::-1]]
        made += [f"<|im_start|>user\n{source[:n]}<|im_end|>\n<|im_start|>assistant\n" for n in (5, 20, 60)]
    made += [ENGLISH + CHINESE, CODE + CHINESE, CHINESE + CODE, " ".join(ENGLISH.split()[::-1])]
    made += ["ha " * 40, "!" * 30, "0123456789" * 6, "\n" * 20, ENGLISH.upper(), ENGLISH.title()]
    made += [json.dumps({"a": [1, 2.5, None], "b": CHINESE[:10]}), "<html><body>&amp;</body></html>"]
    return [*made, "Capital of France?", "日本語", "مرحبا"]


def prompts(tokenizer, vocabulary):
    """50 lists of ids: the texts, one token, 200 tokens, random ids."""
    ids = [tokenizer.encode(text).ids[:200] for text in texts()]
    rng = np.random.default_rng(0)
    ids += [[int(rng.integers(vocabulary))] for _ in range(2)]
    ids += [rng.integers(0, vocabulary, 200).tolist(), (tokenizer.encode(ENGLISH * 20).ids)[:200]]
    return (ids + [rng.integers(0, vocabulary, n).tolist() for n in range(2, 12)])[:50]
