"""Text from models, prompts and logs inside Markdown, as GitHub renders it: shown as it is, and doing nothing.

Backslashes suffice against emphasis, links, images, HTML and fences, but not against what GitHub does to the rendered
text afterwards: mentions, issue numbers and bare addresses become links there, escaped or not. A zero-width space
behind the character that starts them is what release bots put there. In a code span none of it happens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gptq_diff.text import one_line

_ZERO_WIDTH = "&#8203;"
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~!&])")
_BLOCK_START = re.compile(r"^[-+=:#]|^\d+(?=[.)]( |$))")
_SETS_OFF = re.compile(r"(@|#(?=\w)|:(?=//)|\bwww(?=\.)|\bGH-(?=\d))", re.IGNORECASE)
_BACKTICKS = re.compile("`+")


def prose(text: str, limit: int | None = None) -> str:
    """A sentence on one line, as text: no markup, mention, link or reference comes of it."""
    text = _SPECIAL.sub(r"\\\1", one_line(text, limit))
    text = _BLOCK_START.sub(lambda m: f"{m[0]}\\" if m[0].isdigit() else f"\\{m[0]}", text)
    return _SETS_OFF.sub(rf"\1{_ZERO_WIDTH}", text).replace("$", "&#36;")


def code(text: str, limit: int | None = None) -> str:
    """The same as a code span, fenced by one backtick more than the longest run in it; empty text as `(empty)`."""
    text = one_line(text, limit)
    if not text:
        return "(empty)"
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def cell(text: str, limit: int | None = None) -> str:
    """A code span for a table's cell; a bar, which would end the cell even there, becomes a broken bar."""
    return code(text.replace("|", "\N{BROKEN BAR}"), limit)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; cells are Markdown already."""
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def details(summary: str, lines: Sequence[str]) -> list[str]:
    """A part that is folded away until somebody opens it; summary: words of ours. Nothing for no lines."""
    return ["<details>", f"<summary>{summary}</summary>", "", *lines, "", "</details>", ""] if lines else []


def within(lines: Sequence[str], limit: int, more: str = "report.json has them") -> list[str]:
    """The first lines that fit into that many characters, and how many do not."""
    taken: list[str] = []
    left = limit
    for i, line in enumerate(lines):
        left -= len(line) + 1
        if left < 0:
            rest = len(lines) - i
            return [*taken, "", f"({rest} more line{'s' if rest > 1 else ''}: {more})"]
        taken.append(line)
    return taken
