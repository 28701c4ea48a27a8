"""What all answers together say: healthy, collapsed or unknown, and at which prompt lengths."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from gptq_diff.server_probe.collapse import State
from gptq_diff.server_probe.witness import FRESH, Kind, Witness

BOUNDARY = 50
"""Prompt tokens up to which vLLM's fused kernel is taken; a probe that asked none so short says so."""


class Status(str, enum.Enum):
    """What a server is."""

    HEALTHY = "healthy"
    COLLAPSED = "collapsed"
    UNKNOWN = "unknown"

    @property
    def exit_code(self) -> int:
        """Of contract.md."""
        return {"healthy": 0, "collapsed": 1, "unknown": 3}[self.value]


@dataclass(frozen=True)
class Lengths:
    """Prompt tokens of fresh prompts, by the server's count; None where there was none of that kind."""

    collapsed_min: int | None
    collapsed_max: int | None
    healthy_min: int | None
    healthy_max: int | None


def status_of(witnesses: Sequence[Witness], ended: str | None) -> Status:
    """Collapsed if one answer is; healthy if the probe asked all it wanted and could judge each kind and length."""
    if any(each.state is State.COLLAPSED for each in witnesses):
        return Status.COLLAPSED
    judged = {(each.kind, each.words) for each in witnesses if each.state is not State.UNJUDGED}
    asked = {(each.kind, each.words) for each in witnesses if each.kind in FRESH}
    return Status.HEALTHY if asked and not ended and asked <= judged else Status.UNKNOWN


def lengths_of(witnesses: Sequence[Witness]) -> Lengths:
    """Over those that no cache answered for and whose lengths the server told."""
    fresh = [each for each in witnesses if each.kind in FRESH and not (each.answer and each.answer.cached_tokens)]
    found = {
        state: sorted(each.tokens for each in fresh if each.state is state and each.tokens is not None)
        for state in (State.COLLAPSED, State.HEALTHY)
    }
    ends = {state: (tokens[0], tokens[-1]) if tokens else (None, None) for state, tokens in found.items()}
    return Lengths(*ends[State.COLLAPSED], *ends[State.HEALTHY])


def summary_of(witnesses: Sequence[Witness], ended: str | None) -> str:
    """One sentence."""
    status, lengths = status_of(witnesses, ended), lengths_of(witnesses)
    if status is Status.COLLAPSED:
        return f"collapsed {_where(lengths, witnesses)}"
    if status is Status.HEALTHY:
        if lengths.healthy_min is None:
            return "healthy at every length asked; the server does not tell the lengths in tokens"
        return f"healthy at {lengths.healthy_min} to {lengths.healthy_max} prompt tokens"
    if ended:
        return f"could not be judged: {ended}"
    open_ones = [each for each in witnesses if each.kind in FRESH and each.state is State.UNJUDGED]
    if not open_ones:
        return "could not be judged: no question was answered"
    first = open_ones[0].verdict.evidence
    return f"could not be judged: {len(open_ones)} of {len(witnesses)} answers tell nothing, the first: {first}"


def _where(lengths: Lengths, witnesses: Sequence[Witness]) -> str:
    low, high, good, best = lengths.collapsed_min, lengths.collapsed_max, lengths.healthy_min, lengths.healthy_max
    fresh = [each for each in witnesses if each.kind in FRESH and each.state is not State.UNJUDGED]
    failed = sum(each.state is State.COLLAPSED for each in fresh)
    if not failed:
        return "only where a prefix cache holds the beginning of an earlier prompt"
    if low is None or high is None:
        return f"at {failed} of {len(fresh)} prompts; the server does not tell their lengths in tokens"
    if good is None or best is None:
        return f"at every length asked, {low} to {high} prompt tokens"
    if high < good:
        return f"at up to {high} prompt tokens, healthy from {good} on"
    if best < low:
        return f"from {low} prompt tokens on, healthy up to {best}"
    return f"at {failed} of {len(fresh)} prompts, between {low} and {high} tokens; not by length alone"


def notes_of(witnesses: Sequence[Witness], ended: str | None) -> list[str]:
    """What else a person should know, a sentence each."""
    notes = []
    status, lengths = status_of(witnesses, ended), lengths_of(witnesses)
    by_kind = {each.kind: each.state for each in witnesses if each.kind in (Kind.CACHED, Kind.SPOILT)}
    fresh_fails = any(each.kind in FRESH and each.state is State.COLLAPSED for each in witnesses)
    if fresh_fails and by_kind.get(Kind.CACHED) is State.HEALTHY:
        notes.append("after a long prompt that begins alike the same short one is answered well: a prefix cache hides "
                     "the failure from whoever asks so")  # fmt: skip
    if by_kind.get(Kind.SPOILT) is State.COLLAPSED and lengths.healthy_min is not None:
        notes.append("after a failed short prompt a long one that begins alike fails too: the cache holds what the "
                     "failure left")  # fmt: skip
    if ended and status is Status.COLLAPSED:
        notes.append(f"the probe ended early: {ended}")
    shortest = min((each.tokens for each in witnesses if each.kind in FRESH and each.tokens), default=None)
    if status is Status.HEALTHY and shortest is not None and shortest > BOUNDARY:
        notes.append(f"no prompt was shorter than {shortest} tokens, so that a failure up to {BOUNDARY} cannot be "
                     "ruled out: ask again with --endpoint completions")  # fmt: skip
    cached = max(
        (each.answer.cached_tokens or 0 for each in witnesses if each.kind in FRESH and each.answer), default=0
    )
    if cached:
        notes.append(f"the server's cache answered for {cached} tokens of prompts that were new to it")
    if any(each.without_logprobs for each in witnesses):
        notes.append("some questions fail when log probabilities are asked for and are answered without, as with vLLM "
                     "where they are NaN")  # fmt: skip
    return notes
