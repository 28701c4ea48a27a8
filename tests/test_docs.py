"""The pages of docs/ and the READMEs: every page can be reached, no link is broken, every command is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer

from gptq_diff.cli.app import app

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md"]
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
GUIDES = [*HOW_TO, DOCS / "first-ten-minutes.md", *PAGES[-2:]]

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    """As pytest shows it."""
    return str(page.relative_to(REPOSITORY))


def prose(text: str) -> str:
    """Without fences and inline code, in which nothing is a link."""
    return re.sub(r"`[^`]*`", "", FENCE.sub("", text))


def links(page: Path) -> list[tuple[Path, str]]:
    """File and anchor of every link that stays in the repository."""
    found = []
    for target in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = unquote(target).partition("#")
            found.append(((page.parent / file).resolve() if file else page, anchor))
    return found


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings: small letters, no punctuation, hyphens for blanks, numbers for repetitions."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        same = (slug, *(f"{slug}-{n}" for n in range(1, 99)))
        found.add(next(each for each in same if each not in found))
    return found


def broken(page: Path) -> list[str]:
    """Links of the page to files or headings that are not there."""
    return [
        f"{file}#{anchor}"
        for file, anchor in links(page)
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8")))
    ]


def commands(text: str) -> list[list[str]]:
    """The words after gptq-diff of each command in a fence."""
    lines = [line for fence in FENCE.findall(text) for line in fence.splitlines()]
    found = (re.match(r"(?:\$ )?(?:\.venv/bin/)?gptq-diff (.+)", line) for line in lines)
    return [shlex.split(match[1].replace("[", "").replace("]", ""), comments=True) for match in found if match]


def unknown(words: list[str]) -> list[str]:
    """What in these words is neither a command of gptq-diff nor an option of that command."""
    command, rest = typer.main.get_command(app), list(words)
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return rest[:1]
        command = command.commands[rest.pop(0)]
    options = {each for parameter in command.params for each in (*parameter.opts, *parameter.secondary_opts)}
    return [word for word in rest if word.startswith("-") and word.partition("=")[0] not in options]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_link_is_broken(page: Path) -> None:
    """Files, pictures and anchors."""
    assert broken(page) == []


def test_broken_links_are_seen(tmp_path: Path) -> None:
    """A missing file, a missing heading; not what stands in code or leads elsewhere."""
    page = tmp_path / "page.md"
    text = "# One, two: `three`\n[a](#one-two-three) [b](#two) [c](none.md) `[d](no)` [e](https://x.org/none)\n"
    page.write_text(text, encoding="utf-8")
    assert broken(page) == [f"{page}#two", f"{tmp_path / 'none.md'}#"]


def test_every_page_can_be_reached_from_the_front_page() -> None:
    """By one link, or by two."""
    near = {file for file, _ in links(DOCS / "index.md") if file.suffix == ".md"}
    far = {file for page in near for file, _ in links(page)}
    assert {page.resolve() for page in PAGES} <= near | far


def test_the_readmes_lead_to_the_front_page() -> None:
    """A reader need not guess that there is one."""
    for readme in PAGES[-2:]:
        assert DOCS / "index.md" in [file for file, _ in links(readme)]


@pytest.mark.parametrize("page", HOW_TO, ids=name)
def test_a_how_to_page_is_short(page: Path) -> None:
    """An answer, not a reference: 60 lines at most, and at least one command."""
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert commands(text)


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_every_command_is_one(page: Path) -> None:
    """Names of commands and options, as they stand in fences, exist."""
    assert [unknown(words) for words in commands(page.read_text(encoding="utf-8")) if unknown(words)] == []


def test_commands_that_do_not_exist_are_seen() -> None:
    """A command, a command of a group, an option."""
    fence = "```\n{}\n```\n"
    text = fence.format("$ gptq-diff ran --model X\n.venv/bin/gptq-diff model mend X  # no\ngptq-diff run --prompts p")
    assert [unknown(words) for words in commands(text)] == [["ran"], ["mend"], ["--prompts"]]
