"""Make untrusted text (prompts, model output, logs, file names) fit for a terminal or a report.

What is taken out can move the cursor, recolour or hide text, or reorder it: see "Trojan Source"
(https://trojansource.codes) for the bidirectional controls and ECMA-48 for the escape sequences.
Escaping for a format (Rich markup, Markdown, HTML) is that format's own affair and comes afterwards.
"""

from __future__ import annotations

import re

# Whole ECMA-48 sequences first, so that their printable tail ("[31m", a link's address) goes with them. Each
# alternative stops at the next one's start, so that time stays linear however many unfinished sequences a text holds.
_ESCAPES = re.compile(
    r"""
      (?:\x1b\[|\x9b) [0-?]* [ -/]* [@-~]   # CSI: colours, cursor
    | (?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]) [^\x07\x1b\x80-\x9f]* (?:\x07|\x1b\\|\x9c)   # OSC, DCS, SOS, PM, APC
    | \x1b [ -/]* [0-~]   # any other, and the start of an unfinished one
    """,
    re.VERBOSE,
)

_CONTROLS = re.compile(
    "["
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # C0 without tab, newline, carriage return; DEL; C1
    "\u00ad\u034f\u061c\u180e"  # soft hyphen, grapheme joiner, Arabic letter mark, Mongolian vowel separator
    "\u115f\u1160\u3164\uffa0"  # Hangul fillers: letters that show nothing
    "\u200b-\u200f\u202a-\u202e"  # zero width, direction marks, bidirectional embeddings and overrides
    "\u2060-\u206f\ufeff\ufff9-\ufffb"  # word joiner, invisible operators, isolates, byte-order mark, annotations
    "\U000e0000-\U000e007f"  # tag characters: an invisible copy of ASCII
    "]"
)
_NEWLINES = re.compile("\r\n|[\r\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_BLANKS = re.compile(r"\s+")


def clean(text: str) -> str:
    """The text without control characters and escape sequences; newlines (made LF) and tabs stay.

    Lone surrogates, which no encoding can write, become U+FFFD.
    """
    text = _ESCAPES.sub("", text)
    text = _NEWLINES.sub("\n", text)
    text = _CONTROLS.sub("", text)
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str, limit: int | None = None) -> str:
    """The cleaned text on one line, every run of blanks one space; longer than `limit` characters ends in an ellipsis.

    None means any length.
    """
    text = _BLANKS.sub(" ", clean(text)).strip()
    if limit is not None and len(text) > limit:
        return text[: max(limit - 1, 0)].rstrip() + "…"
    return text
