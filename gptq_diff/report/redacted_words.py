"""Sentences that are to be shared: words of gptq-diff's own public source, numbers and layers' names stay, alone.

It is a list of what may stay, not of what must go: a path, an address, a token, a name of a person or a host is not
among the words of this package, whatever it looks like. Anything between quotation marks goes as well, since that is
where messages quote what a model wrote or a user asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from gptq_diff.text import one_line

MASK = "[…]"
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:-[A-Za-z0-9_]+)*")
_NUMBER = re.compile(
    r"[-+<>=~±×x]*(?:\d{1,6}|\d{1,3}(?:,\d{3}){1,4})(?:\.\d{1,8})?(?:e[-+]?\d{1,3})?%?|2\^-?\d{1,3}|\d{1,6}/\d{1,6}|"
    r"\d{1,4}\.\d{1,4}\.\d{1,4}"
)
_SIGNS = frozenset("+-*/=<>×±–—→|&:;,.…") | {"->", "<=", ">=", "==", "!="}
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|`[^`]*`|(?<![A-Za-z0-9])'[^']*'(?![A-Za-z0-9])")
_OUTSIDE = re.compile(r"^([(\[{]*)(.*?)((?:'s)?[)\]}.,;:!?]*)$")
_PIECES = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[a-z]+|\d+")
_RELEASED = re.compile(
    r"(?:vllm|gptqmodel)==\d{1,4}(?:\.\d{1,6}){1,3}(?:\.post\d{1,3})?:(?:exllama|reconstruct|gptq|exllama_v2)", re.ASCII
)
"""The kernel of a release, as gptq_diff.releases names it: public, and of no use where it is masked."""
_BEFORE_A_PROMPT = frozenset({"prompt", "prompts"})

_LAYER_WORDS = (
    "model language_model text_model transformer decoder encoder base_model layers layer h blocks block self_attn attn "
    "attention self_attention cross_attn linear_attn mlp ffn feed_forward block_sparse_moe experts shared_expert "
    "shared_experts expert gate q_proj k_proj v_proj o_proj qkv_proj gate_proj up_proj down_proj gate_up_proj in_proj "
    "out_proj dense dense_h_to_4h dense_4h_to_h query_key_value c_attn c_proj c_fc fc1 fc2 w1 w2 w3 wq wk wv wo Wqkv "
    "lm_head embed_tokens norm input_layernorm post_attention_layernorm embedding head wte wpe ln_f"
)
LAYER_WORDS = frozenset(_LAYER_WORDS.split())
"""What parts of the names of linears in public architectures are called; any other part is masked."""


@cache
def vocabulary() -> frozenset[str]:
    """Every word of this package's source files, and what hyphens join there; empty, so that nothing stays, without."""
    words: set[str] = set()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        for word in _WORD.findall(path.read_text(encoding="utf-8")):
            words.update((word, word.lower(), *(p for p in word.lower().split("-") if not p[:1].isdigit())))
    return frozenset(words)


def known(name: str) -> bool:
    """Whether it is a word of ours, a class's name that is made of such words, or a release's kernel."""
    if not name or len(name) > 60:
        return False
    if _RELEASED.fullmatch(name):
        return True
    if _WORD.fullmatch(name) and (name in vocabulary() or name.lower() in vocabulary()):
        return True
    pieces = _PIECES.findall(name)
    made = "".join(pieces) == name and name[0].isupper()
    return made and all((p.isdigit() and len(p) < 4) or p.lower() in vocabulary() for p in pieces)


def layer_name(name: str) -> str:
    """The name of a linear, glob or rank's share, its unknown parts masked: `model.layers.3.[…]`.

    A number stays behind a part that is none: numbers one after the other are an address, not a name.
    """
    base, at, part = name.partition("@")
    parts = base.split(".")
    kept = [
        p if p in LAYER_WORDS or p == "*" or (re.fullmatch(r"\d{1,4}", p) and before and not before.isdigit()) else MASK
        for before, p in zip(("", *parts), parts)
    ]
    if at and not (re.fullmatch(r"\d{1,3}", part) or known(part)):
        part = MASK
    return ".".join(kept) + at + part


class Words:
    """What may stay of a sentence; names: prompts' ids -> what they are called in what is shared."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = dict(names)

    def kept(self, text: str) -> str:
        """The sentence on one line with everything unknown masked."""
        out: list[str] = []
        for token in _QUOTED.sub(f" {MASK} ", one_line(text)).split(" "):
            if not token:
                continue
            said = self._token(token, out[-1].lower().strip("(,:;") if out else "")
            if not (MASK in said and out and out[-1] == MASK and said == MASK):
                out.append(said)
        return " ".join(out)

    def whole(self, text: str) -> str | None:
        """The sentence if nothing in it had to be masked, else None."""
        said = self.kept(text)
        return None if MASK in said else said

    def _token(self, token: str, before: str) -> str:
        found = _OUTSIDE.match(token)
        if found is None:
            return MASK
        opened, core, closed = found[1], found[2], found[3]
        if (before in _BEFORE_A_PROMPT or not _plain(core)) and core in self._names:
            return f"{opened}{self._names[core]}{closed}"
        if not core or _plain(core):
            return token
        name = layer_name(core)
        if "." in core and MASK not in name and not core[0].isdigit():
            return token
        halves = core.split("/")
        if len(halves) == 2 and all(map(_plain, halves)):  # inf/NaN
            return token
        return f"{opened}{MASK}{closed}"


def _plain(core: str) -> bool:
    """A word of ours, a number, a sign, or a number with a unit of ours (`4-bit`, `M=37`)."""
    if core in _SIGNS or _NUMBER.fullmatch(core) or known(core):
        return True
    left, dash, right = core.partition("-")
    if dash and right and left.isdigit() and len(left) <= 6 and known(right):
        return True
    left, equals, right = core.partition("=")
    return bool(equals) and known(left) and _NUMBER.fullmatch(right) is not None
