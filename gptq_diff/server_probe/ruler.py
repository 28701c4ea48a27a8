"""How many filler words make a prompt of so many tokens, learnt from the server's own counts."""

from __future__ import annotations

from dataclasses import dataclass, field

_UNKNOWN = 30
"""Tokens of a prompt without filler, until the server has told."""


@dataclass
class Ruler:
    """What was learnt: filler words -> tokens of the whole prompt."""

    seen: dict[int, int] = field(default_factory=dict)

    def learn(self, words: int, tokens: int | None) -> None:
        """Take in one count; None teaches nothing."""
        if tokens is not None:
            self.seen[words] = tokens

    def words_for(self, tokens: int) -> int | None:
        """Filler words for a prompt of about so many tokens; None where even one without any is longer."""
        points = sorted(self.seen.items())
        if not points:
            return max(0, tokens - _UNKNOWN)
        (first, least), (last, most) = points[0], points[-1]
        each = (most - least) / (last - first) if most > least else 1.0
        words = first + round((tokens - least) / each)
        return words if words >= 0 else None
