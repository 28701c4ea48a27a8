"""Collapse, the first difference, the distance of the first distribution (contract.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptq_diff.compare.tokens import collapse, first_different_token, first_token_kl
from tests.compare.made import manifest


@pytest.mark.parametrize(
    ("tokens", "finite", "reference", "expected"),
    [
        ((0, 0, 0, 0), None, (5, 6, 7, 8), (True, 0)),
        ((9, 9, 9, 9, 9), None, (5, 6), (True, 9)),
        ((0, 0, 0), None, (5, 6, 7), (False, None)),  # fewer than four say nothing
        ((0, 0, 0, 0), None, (3, 3, 3, 3), (False, None)),  # the reference repeats itself too
        ((0, 0, 0, 1), None, (5, 6, 7, 8), (False, None)),
        ((4, 0), (True, False), (5, 6), (True, 0)),  # a step without a finite logit, at once
        ((0,), (False,), None, (True, 0)),  # without a reference the logits alone can tell
        ((0, 0, 0, 0), None, None, (False, None)),
    ],
)
def test_collapse(tokens, finite, reference, expected):
    assert collapse(manifest(tokens, finite), manifest(reference) if reference else None) == expected


@pytest.mark.parametrize(
    ("tokens", "reference", "expected"),
    [
        ((1, 2, 3), (1, 2, 3), None),
        ((1, 9, 3), (1, 2, 3), 1),
        ((1, 2), (1, 2, 3), 2),
        ((1, 2, 3), (1,), 1),
        ((), (), None),
    ],
)
def test_first_different_token(tokens, reference, expected):
    assert first_different_token(tokens, reference) == expected


def test_kl_is_that_of_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 100)) * 3
    p, q = (np.exp(v) / np.exp(v).sum() for v in (b, a))
    got = first_token_kl(torch.from_numpy(a), torch.from_numpy(b))
    assert got == pytest.approx((p * np.log(p / q)).sum(), rel=1e-9)


def test_kl_of_equals_is_zero_and_of_what_is_not_finite_none():
    logits = torch.randn(50)
    assert first_token_kl(logits, logits) == 0.0
    assert first_token_kl(torch.full((50,), float("nan")), logits) is None
    assert first_token_kl(logits[:40], logits) is None
