"""README.zh-CN.md says what README.md says: the same commands, links, figures, paragraphs and sections, in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ENGLISH = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CHINESE = (REPOSITORY / "README.zh-CN.md").read_text(encoding="utf-8")

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
LARGE = {"million": 1_000_000, "billion": 1_000_000_000, "亿": 100_000_000}
FIGURE = re.compile(r"(\d+(?:[.,]\d+)*)(?: (million|billion|亿))?")


def sections(text: str) -> list[str]:
    """The text before the first heading of second rank, and from each to the next."""
    return re.split(r"^(?=## )", FENCE.sub("", text), flags=re.MULTILINE)


def links(text: str) -> list[str]:
    """Where links lead, but for those from one of the two languages to the other."""
    return [target for target in LINK.findall(FENCE.sub("", text)) if not target.startswith("README")]


def blocks(section: str) -> list[str]:
    """Its paragraphs, rows of tables and items of lists."""
    return [block for block in re.split(r"\n\s*\n|\n(?=\||- )", section) if block.strip()]


def figures(text: str) -> list[float | str]:
    """Numbers outside of fences, links' targets and inline code; 1.05 亿 and 105 million are one number."""
    prose = re.sub(r"`[^`]*`", "", LINK.sub("]", FENCE.sub("", text)))
    return [
        round(float(number.replace(",", "")) * LARGE[unit]) if unit else number
        for number, unit in FIGURE.findall(prose)
    ]


def differences(one: str, other: str) -> list[str]:
    """What the two texts do not have alike."""
    found = []
    if FENCE.findall(one) != FENCE.findall(other):
        found.append("code blocks")
    if links(one) != links(other):
        found.append("links")
    if len(sections(one)) != len(sections(other)):
        return [*found, "sections"]
    for place, (a, b) in enumerate(zip(sections(one), sections(other), strict=True)):
        if len(blocks(a)) != len(blocks(b)):
            found.append(f"paragraphs or rows of section {place}")
            continue
        # Word order differs between the languages, so within a block commands and figures may change places.
        for left, right in zip(blocks(a), blocks(b), strict=True):
            if sorted(re.findall(r"`([^`]+)`", left)) != sorted(re.findall(r"`([^`]+)`", right)):
                found.append(f"inline code of section {place}")
            if sorted(map(str, figures(left))) != sorted(map(str, figures(right))):
                found.append(f"figures of section {place}")
    return found


def test_both_say_the_same() -> None:
    """Nothing that can be compared across languages differs."""
    assert differences(ENGLISH, CHINESE) == []


def test_each_leads_to_the_other() -> None:
    """Near the top, before the first section."""
    assert "[简体中文](README.zh-CN.md)" in sections(ENGLISH)[0]
    assert "[English](README.md)" in sections(CHINESE)[0]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("make demo ", "make show ", "code blocks"),
        ("--prompt-file prompts.jsonl", "--prompts prompts.jsonl", "code blocks"),
        ("short (37)       overflow", "short (38)       overflow", "code blocks"),
        ("](docs/sweep.md)", "](docs/reduce.md)", "links"),
        ("`--sweep-tokens`", "`--sweep`", "inline code of section 3"),
        ("11,600", "11,700", "figures of section 1"),
        ("\n## ", "\n### ", "sections"),
        ("\n| `sim-gptq` |", " `sim-gptq` |", "paragraphs or rows of section 2"),
    ],
)
def test_a_change_in_one_alone_is_seen(old: str, new: str, says: str) -> None:
    """Whichever of the two it is made in: a command, sample output, a link, an option, a figure, a section, a row."""
    assert old in ENGLISH and old in CHINESE
    assert says in differences(ENGLISH.replace(old, new), CHINESE)
    assert says in differences(ENGLISH, CHINESE.replace(old, new))


def test_a_large_number_is_told_from_another() -> None:
    """105 million is 1.05 亿, and not 1.06."""
    assert figures("105 million") == figures("1.05 亿") != figures("1.06 亿")
