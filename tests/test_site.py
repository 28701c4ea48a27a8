"""docs/ as a site: built without a warning, no page lost, no link that leads nowhere, nothing loaded from afar."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/.site/hooks.py, as mkdocs loads it."""
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / ".site" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` builds it: a warning is an error."""
    place = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return place


def test_every_page_becomes_one(site: Path) -> None:
    """Those of docs/, and the three from the top of the repository."""
    for page in DOCS.rglob("*.md"):
        made = page.relative_to(DOCS).with_suffix(".html").as_posix().replace("README.html", "index.html")
        assert (site / made).is_file(), page
    assert all((site / f"{name}.html").is_file() for name in ("readme", "readme.zh-CN", "changelog"))
    assert (site / "report.schema.json").is_file()
    assert not (site / ".site").exists()


def test_links_inside_lead_to_files_of_the_site(site: Path) -> None:
    """Also those between a page that came from the top and the others."""
    broken = []
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        targets = re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8"))
        inside = (target for target in targets if not re.match(r"[a-z]+:|//", target))
        broken += [f"{page.relative_to(site)}: {target}" for target in inside if not (page.parent / target).exists()]
    assert broken == []
    index = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="readme.html"' in index
    assert 'href="changelog.html"' in index
    assert 'href="why-only-exclamation-marks.html"' in (site / "readme.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """No fonts, scripts or pictures of other hosts; a link that somebody clicks may lead anywhere."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"((?:https?:)?//[^\"]*)", text)
        loaded += re.findall(
            r'<link\b[^>]*rel="(?:stylesheet|preconnect|preload)"[^>]*href="((?:https?:)?//[^"]*)', text
        )
        assert loaded == [], page


def test_a_link_out_of_docs_follows_its_file_or_becomes_words(hooks: ModuleType) -> None:
    """Pages from the top are found from any depth; of other files the words stay; code is no link."""
    relinked = hooks.relinked
    assert relinked("[a](../README.md#more)", "docs/index.md", "index.md") == "[a](readme.md#more)"
    assert relinked("[a](../../CHANGELOG.md)", "docs/how-to/x.md", "how-to/x.md") == "[a](../changelog.md)"
    assert relinked("see [`pins/`](../gptq_diff/pins).", "docs/x.md", "x.md") == "see `pins/`."
    assert relinked("[a](docs/gpu.md#b)", "README.md", "readme.md") == "[a](gpu.md#b)"
    assert relinked("![a](docs/pictures/p.png)", "README.md", "readme.md") == "![a](pictures/p.png)"
    for kept in ("[a](https://x.example/y.md)", "[a](#b)", "`[a](../x.md)`", "```\n[a](../x.md)\n```"):
        assert relinked(kept, "docs/x.md", "x.md") == kept
    assert relinked("[a](reduce.md)", "docs/how-to/x.md", "how-to/x.md") == "[a](reduce.md)"


def test_the_menu_is_the_index(hooks: ModuleType) -> None:
    """Sections and order of docs/index.md, each page once; a page that it does not link is not lost."""
    index = (
        "# t\n[x](x.md)\n## One\n| [b](b.md) | [schema](s.json) |\n[a](how/a.md#c), [b](b.md)\n## Two\n[o](../R.md)\n"
    )
    found = hooks.menu(index, {"index.md", "b.md", "how/a.md", "c.md"})
    assert [part for part in found if isinstance(part, dict)][2:-1] == [
        {"One": ["b.md", "how/a.md"]},
        {"More": ["c.md"]},
    ]
    assert (found[0], found[-1]) == ("index.md", {"Changelog": "changelog.md"})
