"""A finished probe as one value: for the screen, as JSON, as metrics."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from gptq_diff.server_probe.server import Found
from gptq_diff.server_probe.summary import Lengths, Status, lengths_of, notes_of, status_of, summary_of
from gptq_diff.server_probe.witness import Kind, Witness
from gptq_diff.text import clean, one_line


@dataclass(frozen=True)
class ProbeReport:
    """One probe. server: what it says of itself, None where it was not found. endpoint: chat or completions.

    ended: why not all was asked, None for all. seconds: it took; waited: of them on being told to come later.
    """

    base_url: str
    server: Found | None
    endpoint: str | None
    witnesses: tuple[Witness, ...]
    ended: str | None
    seconds: float
    waited: float

    @property
    def status(self) -> Status:
        """Healthy, collapsed or unknown."""
        return status_of(self.witnesses, self.ended)

    @property
    def summary(self) -> str:
        """One sentence."""
        return one_line(summary_of(self.witnesses, self.ended))

    @property
    def lengths(self) -> Lengths:
        """Where it collapses and where not."""
        return lengths_of(self.witnesses)

    @property
    def notes(self) -> list[str]:
        """What else there is to know."""
        return [one_line(note) for note in notes_of(self.witnesses, self.ended)]

    def state_of(self, kind: Kind) -> str | None:
        """Of the answer of a kind that is asked once; None where it was not."""
        return next((each.state.value for each in self.witnesses if each.kind is kind), None)

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints (docs/probe-server.md)."""
        server = None if self.server is None else {**asdict(self.server), "model": clean(self.server.model)}
        return {
            "schema_version": 1, "status": self.status.value, "summary": self.summary, "base_url": self.base_url,
            "server": server, "endpoint": self.endpoint, "prompt_tokens": asdict(self.lengths),
            "cached": self.state_of(Kind.CACHED), "spoilt": self.state_of(Kind.SPOILT), "notes": self.notes,
            "ended": self.ended and one_line(self.ended), "seconds": round(self.seconds, 3),
            "waited": round(self.waited, 3), "answers": [_answer(each) for each in self.witnesses],
        }  # fmt: skip


def _answer(each: Witness) -> dict[str, Any]:
    answer = each.answer
    told: dict[str, Any] = {"prompt_tokens": None, "cached_tokens": None, "completion_tokens": None, "text": None,
                            "token_ids": None, "logprobs": None, "finish_reason": None}  # fmt: skip
    if answer is not None:
        told = {
            "prompt_tokens": answer.prompt_tokens, "cached_tokens": answer.cached_tokens,
            "completion_tokens": answer.length, "text": clean(answer.text)[:400],
            "token_ids": None if answer.ids is None else list(answer.ids),
            "logprobs": None if answer.logprobs is None else [_number(value) for value in answer.logprobs],
            "finish_reason": answer.finish and one_line(answer.finish, 40),
        }  # fmt: skip
    return {
        "kind": each.kind.value, "words": each.words, "state": each.state.value,
        "evidence": one_line(each.verdict.evidence), "without_logprobs": each.without_logprobs,
        "went_on": each.went_on, "seconds": round(each.seconds, 3), **told,
    }  # fmt: skip


def _number(value: float | None) -> float | str | None:
    """JSON has no NaN: a word stands for it."""
    return value if value is None or math.isfinite(value) else str(value)
