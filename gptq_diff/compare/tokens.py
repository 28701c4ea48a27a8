"""What the generated tokens say: collapse, the first difference, the distance of the first distribution."""

from __future__ import annotations

import torch

from gptq_diff.capture.store import Manifest

COLLAPSE_TOKENS = 4
"""Tokens that must all be one id before equal tokens count as a collapse."""


def _all_one(tokens: tuple[int, ...]) -> bool:
    return len(tokens) >= COLLAPSE_TOKENS and len(set(tokens)) == 1


def collapse(manifest: Manifest, reference: Manifest | None) -> tuple[bool, int | None]:
    """(collapsed, the token): a step without any finite logit, or one id over and over where the reference varies.

    reference: None when there is none to compare with; then only the logits can tell. The reference itself never
    collapses and is not asked about (contract.md).
    """
    if not all(manifest.logits_finite):
        return True, manifest.tokens[manifest.logits_finite.index(False)]
    if reference is not None and _all_one(manifest.tokens) and not _all_one(reference.tokens):
        return True, manifest.tokens[0]
    return False, None


def first_different_token(tokens: tuple[int, ...], reference: tuple[int, ...]) -> int | None:
    """Index of the first generated token that differs, a missing one included; None when all agree."""
    for i, (a, b) in enumerate(zip(tokens, reference)):
        if a != b:
            return i
    return None if len(tokens) == len(reference) else min(len(tokens), len(reference))


def first_token_kl(logits_V: torch.Tensor, reference_V: torch.Tensor) -> float | None:
    """KL(reference || backend) of the first token's distribution, in nats; None when a logit is not finite."""
    if logits_V.shape != reference_V.shape:
        return None
    p, q = (torch.log_softmax(t.double(), dim=0) for t in (reference_V, logits_V))
    value = float(torch.sum(p.exp() * (p - q)))
    return max(value, 0.0) if value < float("inf") else None
