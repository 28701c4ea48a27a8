"""Why something was left out, for sharing: the forms that gptq-diff gives such reasons, and nothing that follows.

What follows in a reason is quoted from an engine or its log, where anything may stand: paths, hosts, addresses, tokens.
"""

from __future__ import annotations

import builtins
import re

from gptq_diff.report.redacted_words import Words

WITHHELD = "the reason is withheld: it quotes words that are not gptq-diff's own"
_NUMBER = r"\d{1,6}(?:\.\d{1,3})?"
_FORMS = re.compile(
    "|".join((
        rf"timed out after {_NUMBER} s",
        r"its worker was killed by SIG[A-Z]{2,6}(?: \(out of memory\?\))?",
        r"its worker was killed by signal \d{1,3}(?: \(out of memory\?\))?",
        r"its worker ended with status -?\d{1,3}",
        r"its worker ended before its work",
        r"ran out of GPU memory",
        r"needs an NVIDIA GPU",
        r"Python module not installed: (?:vllm|auto_gptq|gptqmodel|optimum|transformers|torch)\b",
        r"vllm is built for a GPU, and there is none here",
        r"the run was interrupted when \d{1,5} of its \d{1,5} captures were whole",
        r"not run: --teacher-force feeds it the reference's ids, and the reference did not finish",
    ))
)  # fmt: skip
_MOST = 300
"""Characters of a linear's reason that may stay."""
_ERROR = re.compile(r"\b(?:[A-Za-z_]+\.)*([A-Z][A-Za-z]{2,40}(?:Error|Exception))\b")
_ERRORS = frozenset(name for name in dir(builtins) if name.endswith("Error")) | {
    "OutOfMemoryError", "AcceleratorError", "EngineDeadError", "SafetensorError", "HFValidationError", "Exception",
}  # fmt: skip
"""Exceptions of Python, torch, vLLM, safetensors and the Hub whose names may stay."""


def backend_reason(text: str) -> str:
    """The form that the reason begins with, and the exception's name if one is named; else WITHHELD."""
    found = _FORMS.match(text)
    error = next((name for name in _ERROR.findall(text) if name in _ERRORS), None)
    named = "" if error is None else f" ({error})"
    return f"{WITHHELD}{named}" if found is None else f"{found[0]}{named}"


def layer_reason(text: str, words: Words) -> str:
    """A kernel's refusal and its like: whole if it is of our words, else its form, else WITHHELD."""
    said = words.whole(text) if len(text) <= _MOST else None
    return backend_reason(text) if said is None else said
