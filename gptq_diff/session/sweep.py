"""--sweep-tokens: one prompt at every length of a range, and at which lengths the verdict changes.

A length of n takes the prompt's first n tokens. Where it has fewer, its tokens from the second on follow again and
again until there are n: the first token stays the only one of its place (the massive activations of many models are
the first token's), and every other token is one that the prompt holds itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gptq_diff.errors import UsageError
from gptq_diff.prompts.tokenise import fingerprint
from gptq_diff.records import Prompt, PromptInfo, Result, Sweep, SweepRange, swept_prompt

HINT = "write FIRST:LAST or FIRST:LAST:STEP, such as 1:64"


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens: first, first + step, ... up to last."""

    first: int
    last: int
    step: int = 1

    def all(self) -> range:
        """Every length, shortest first."""
        return range(self.first, self.last + 1, self.step)


def parse_lengths(text: str) -> Lengths:
    """`A:B` or `A:B:STEP`; UsageError for anything else."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
        raise UsageError(f"--sweep-tokens {text} is no range of lengths", HINT)
    lengths = Lengths(*map(int, parts))
    if lengths.first < 1 or lengths.step < 1 or lengths.last < lengths.first:
        raise UsageError(f"--sweep-tokens {text} holds no length", HINT)
    return lengths


def swept(prompts: Iterable[Prompt], lengths: Lengths, context_length: int | None) -> tuple[Prompt, ...]:
    """Every prompt at every length, with ids such as `p1-t037`; UsageError beyond the model's context."""
    if context_length is not None and lengths.last > context_length:
        raise UsageError(
            f"--sweep-tokens goes up to {lengths.last} tokens; the model takes {context_length} at most",
            "end the range there",
        )
    digits = max(3, len(str(lengths.last)))
    return tuple(_of_length(prompt, n, f"{prompt.id}-t{n:0{digits}}") for prompt in prompts for n in lengths.all())


def _of_length(prompt: Prompt, tokens: int, name: str) -> Prompt:
    ids = prompt.token_ids
    filling = itertools.cycle(ids[1:] or ids)
    whole = (*ids[:tokens], *itertools.islice(filling, max(tokens - len(ids), 0)))
    text = prompt.text if len(ids) == tokens else None
    return Prompt(name, whole, text, fingerprint(whole))


def sweeps(results: Sequence[Result], prompts: Sequence[PromptInfo], lengths: Lengths) -> tuple[Sweep, ...]:
    """One entry per backend and swept prompt, in the order of the results."""
    tokens = {p.id: p.tokens for p in prompts}
    by_sweep: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        by_sweep.setdefault((result.backend, swept_prompt(result.prompt)), []).append(result)
    return tuple(_sweep(key, found, tokens, lengths) for key, found in by_sweep.items())


def _sweep(key: tuple[str, str], results: list[Result], tokens: dict[str, int], lengths: Lengths) -> Sweep:
    ranges: list[SweepRange] = []
    for result in sorted(results, key=lambda r: tokens[r.prompt]):
        n = tokens[result.prompt]
        layer = result.first_bad.layer if result.first_bad else None
        last = ranges[-1] if ranges else None
        if last is not None and (last.status, last.layer) == (result.status, layer) and last.last + lengths.step == n:
            ranges[-1] = SweepRange(last.first, n, result.status, layer)
        else:
            ranges.append(SweepRange(n, n, result.status, layer))
    backend, prompt = key
    return Sweep(backend, prompt, lengths.first, lengths.last, lengths.step, tuple(ranges))
