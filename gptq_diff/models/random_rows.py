"""Large random fp16 matrices, made a few thousand rows at a time: embeddings and the output head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Callable

import numpy as np
import torch

from gptq_diff.models.massive import FIRST_SINK, LEVEL, LEVEL_VALUE, MEAN, OWN, sinks
from gptq_diff.models.random_bits import random_words
from gptq_diff.models.random_qwen_shape import QwenShape
from gptq_diff.models.tensor_file import Array

_ROWS = 4096
_BYTE_RMS = float(np.sqrt((256**2 - 1) / 12))  # of the numbers 0 to 255 about their middle


Piece = Callable[[], Array]
"""Makes some rows of a matrix; pieces may be made at the same time, and follow each other."""


def embedding_rows(shape: QwenShape, openers: Sequence[int], seed: int) -> Iterator[Piece]:
    """The embedding [V, H] with its reserved channels (gptq_diff.models.massive); every row has rms 1."""
    is_opener = torch.zeros(shape.vocabulary)
    is_opener[list(openers)] = 1
    end = FIRST_SINK + len(sinks(shape))

    def piece(first: int) -> Array:
        rows_VH = _uniform_rows(shape, "model.embed_tokens.weight", seed, first)
        own = is_opener[first : first + len(rows_VH)]
        rows_VH[:, :end] = 0
        wanted = (shape.hidden - own - LEVEL_VALUE**2).double()
        squares = rows_VH.double().square_().sum(dim=1)  # exact, so the same on every machine, in whatever order
        rows_VH *= (wanted / squares).sqrt().float()[:, None]
        rows_VH[:, OWN], rows_VH[:, MEAN], rows_VH[:, LEVEL] = own, 0, LEVEL_VALUE
        halves: Array = rows_VH.half().numpy()
        return halves

    return (partial(piece, first) for first in range(0, shape.vocabulary, _ROWS))


def head_rows(shape: QwenShape, logits_rms: float, seed: int) -> Iterator[Piece]:
    """The output head [V, H]: logits of that rms for inputs of rms 1; reserved channels are not read.

    The rows of id 0 and of the special tokens are zero: a healthy model never stops early, and says "!" only when its
    logits are NaN.
    """

    def piece(first: int) -> Array:
        rows_VH = _uniform_rows(shape, "lm_head.weight", seed, first)
        rows_VH *= logits_rms / shape.hidden**0.5 / _BYTE_RMS
        rows_VH[:, : FIRST_SINK + len(sinks(shape))] = 0
        silent = [0, *range(shape.first_special, shape.first_special + 3)]
        rows_VH[[token - first for token in silent if first <= token < first + len(rows_VH)]] = 0
        halves: Array = rows_VH.half().numpy()
        return halves

    return (partial(piece, first) for first in range(0, shape.vocabulary, _ROWS))


def _uniform_rows(shape: QwenShape, name: str, seed: int, first: int) -> torch.Tensor:
    """Rows from `first` on, float32, of a [V, H] matrix of the 256 values -127.5, -126.5, ..., 127.5."""
    count = min(_ROWS, shape.vocabulary - first)
    words = random_words(seed, f"{name}.{first}", count * shape.hidden // 4)
    values = torch.from_numpy(words.view(np.uint8)).to(torch.float32)
    return values.sub_(127.5).reshape(count, shape.hidden)
