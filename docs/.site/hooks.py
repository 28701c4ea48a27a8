"""For `mkdocs build`: pages of the repository's top come along, and links that lead out of docs/ follow them.

On GitHub and in an editor every link of these pages leads to a file of the repository. A site holds docs/ alone, so
README, README.zh-CN and CHANGELOG become pages of it; of any other file outside only the words stay.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

DOCS, INDEX = "docs", "index.md"
FROM_THE_TOP = {"README.md": "readme.md", "README.zh-CN.md": "readme.zh-CN.md", "CHANGELOG.md": "changelog.md"}
"""File of the repository -> page of the site."""
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The menu is docs/index.md: its sections, and in each the pages that it links, in its order."""
    docs = Path(config["docs_dir"])
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    config["nav"] = menu((docs / INDEX).read_text(encoding="utf-8"), pages)
    return config


def menu(index: str, pages: set[str]) -> list[Any]:
    """The nav of that index; pages it does not link come last, so that none is lost."""
    sections: dict[str, list[str]] = {}
    seen = {INDEX}
    for part in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        title = part.partition("\n")[0].strip()
        for _, link in _LINK.findall(part):
            target = link.partition("#")[0]
            if target in pages - seen:
                sections.setdefault(title, []).append(target)
                seen.add(target)
    rest = {"More": sorted(pages - seen)} if pages - seen else {}
    top = [INDEX, {"README": FROM_THE_TOP["README.md"]}, {"简体中文": FROM_THE_TOP["README.zh-CN.md"]}]
    return [*top, *({k: v} for k, v in {**sections, **rest}.items()), {"Changelog": FROM_THE_TOP["CHANGELOG.md"]}]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from the top; their links are held against where they stood."""
    top = Path(config["config_file_path"]).parent
    for name, page in FROM_THE_TOP.items():
        text = relinked((top / name).read_text(encoding="utf-8"), name, page)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links of the pages in docs/ that lead out of it."""
    source = page.file.src_uri
    return markdown if source in FROM_THE_TOP.values() else relinked(markdown, f"{DOCS}/{source}", source)


def relinked(text: str, source: str, page: str) -> str:
    """The text with its links as the site has them; source: its file in the repository, page: its place in the site."""
    kept: list[str] = []

    def hide(code: re.Match[str]) -> str:
        kept.append(code[0])
        return f"\0{len(kept) - 1}\0"

    def link(found: re.Match[str]) -> str:
        words, target = found[1], found[2]
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, sign, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        place = file.removeprefix(f"{DOCS}/") if file.startswith(f"{DOCS}/") else FROM_THE_TOP.get(file)
        if place is None:
            return words
        return f"[{words}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{sign}{anchor})"

    linked = _LINK.sub(link, _CODE.sub(hide, text))
    return re.sub("\0(\\d+)\0", lambda n: kept[int(n[1])], linked)
