"""A prompt made longer than the fused path takes: what people did for two years, with the pad that was used."""

from __future__ import annotations

from gptq_diff.records import Judgement, Workaround

NAME = "padded prompt"
FAST_PATHS = frozenset({"exllama-fast", "exllama-v1"})


def padded(token_ids: tuple[int, ...], pad: int, rows: int) -> tuple[int, ...]:
    """The prompt with that id repeated after its first token, up to so many tokens.

    After the first, not before it: a massive activation is the first token's, and a workaround that moves it away
    would help for another reason.
    """
    missing = max(0, rows - len(token_ids))
    return (*token_ids[:1], *([pad] * missing), *token_ids[1:])


def worth_padding(first_bad: Judgement, tokens: int, rows: int) -> bool:
    """Whether the prompt is on the short side of a boundary that it can be moved over."""
    return first_bad.path in FAST_PATHS and tokens < rows


def of_padded(
    before: int, after: int, pad: str, bad: Judgement | None, *, collapsed: bool, text: str | None, same: bool
) -> Workaround:
    """before, after: tokens of the prompt. pad: in words. bad: what still breaks. same: the reference's tokens came."""
    how = f"{after - before} times {pad} after the first token: {after} tokens instead of {before}"
    if bad is not None:
        return Workaround.run(NAME, f"{how}; {bad.layer} still breaks ({bad.kind})", works=False)
    if collapsed:
        return Workaround.run(NAME, f"{how}; every linear agrees, yet the output collapses", works=False)
    answer = "the reference's tokens" if same else f"the answer {text!r}" if text is not None else "other tokens"
    cost = f"{after - before} more rows in every prefill; tokens decoded one by one take the fused path as before"
    return Workaround.run(NAME, f"{how}; every linear agrees, with {answer}; it costs {cost}", works=True)
