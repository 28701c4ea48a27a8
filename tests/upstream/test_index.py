"""Asking a package index: a real one on this machine, made of a folder, and the ways in which it can be wrong."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptq_diff.errors import GptqDiffError, UsageError
from gptq_diff.releases import Release
from gptq_diff.upstream.index import fetch_sdist, releases
from gptq_diff.upstream.installer import Installer
from tests.upstream.made import sdist

RELEASE = Release("vllm", "0.5.1")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing to the terminal."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[Path, Installer]]:
    """Folder of a simple index that is served on this machine, and settings that point there."""
    root = tmp_path / "served"
    root.mkdir()
    handler = functools.partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/simple"
        yield root, Installer(index_urls=(url,), timeout=5)
        server.shutdown()
        thread.join()


def offer(root: Path, *names: str, digest: str | None = None, attributes: dict[str, str] | None = None) -> None:
    """A page for vllm with files of those names; every file's own hash, or the one given ("" for none)."""
    lines = []
    for name in names:
        file = root / name
        if not file.exists():
            file.write_bytes(b"not a real one")
        sha = hashlib.sha256(file.read_bytes()).hexdigest() if digest is None else digest
        more = (attributes or {}).get(name, "")
        lines.append(f'<a href="/{name}{f"#sha256={sha}" if sha else ""}"{more}>{name}</a>')
    page = root / "simple" / "vllm" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("<html><body>" + "\n".join(lines) + "</body></html>")


def test_the_source_distribution_is_fetched_and_its_hash_checked(index: tuple[Path, Installer], tmp_path: Path) -> None:
    """And not the wheel beside it."""
    root, installer = index
    archive = sdist(root)
    offer(root, "vllm-0.5.1-cp38-abi3-manylinux1_x86_64.whl", archive.name, "vllm-0.5.2.tar.gz")
    found = fetch_sdist(RELEASE, installer, tmp_path / "to")
    assert found.name == "vllm-0.5.1.tar.gz"
    assert found.read_bytes() == archive.read_bytes()


def test_a_file_with_another_hash_is_refused(index: tuple[Path, Installer], tmp_path: Path) -> None:
    """Whoever sits between the index and us gets nothing compiled here."""
    root, installer = index
    offer(root, sdist(root).name, digest="0" * 64)
    with pytest.raises(GptqDiffError, match="its hash differs"):
        fetch_sdist(RELEASE, installer, tmp_path / "to")


def test_a_file_without_a_hash_is_refused(index: tuple[Path, Installer], tmp_path: Path) -> None:
    """Nothing could be checked."""
    root, installer = index
    offer(root, sdist(root).name, digest="")
    with pytest.raises(GptqDiffError, match="states no hash"):
        fetch_sdist(RELEASE, installer, tmp_path / "to")


def test_a_release_that_is_not_there_is_said(index: tuple[Path, Installer], tmp_path: Path) -> None:
    """With what to look at."""
    root, installer = index
    offer(root, "vllm-0.5.2.tar.gz")
    with pytest.raises(GptqDiffError, match=r"no source distribution of vllm==0\.5\.1") as caught:
        fetch_sdist(RELEASE, installer, tmp_path / "to")
    assert "pip config list" in str(caught.value.hint)


def test_an_index_that_does_not_know_the_package_says_why(index: tuple[Path, Installer], tmp_path: Path) -> None:
    """unearth goes on after a 404, so its warning is what there is to show."""
    _, installer = index
    with pytest.raises(GptqDiffError, match=r"no source distribution .*404"):
        fetch_sdist(RELEASE, installer, tmp_path / "to")


def test_an_index_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    """Nobody listens on that port."""
    installer = Installer(index_urls=("http://user:secret@127.0.0.1:9/simple",), timeout=2)
    with pytest.raises(GptqDiffError, match=r"the package index .*vllm==0\.5\.1") as caught:
        fetch_sdist(RELEASE, installer, tmp_path / "to")
    assert "secret" not in str(caught.value)


def test_a_folder_of_files_is_an_index_too(tmp_path: Path) -> None:
    """find-links without an index: no network; a file of one's own needs no hash."""
    archive = sdist(tmp_path / "files")
    installer = Installer(index_urls=(), find_links=(str(archive.parent),))
    assert fetch_sdist(RELEASE, installer, tmp_path / "to").read_bytes() == archive.read_bytes()
    assert [one.version for one in releases("vllm", installer)] == ["0.5.1"]


def test_pip_set_to_look_nowhere_is_a_usage_error(tmp_path: Path) -> None:
    """no-index without find-links."""
    with pytest.raises(UsageError, match="set to look nowhere") as caught:
        fetch_sdist(RELEASE, Installer(index_urls=()), tmp_path)
    assert "--sdist" in str(caught.value.hint)


def test_releases_are_listed_by_version_not_by_name(index: tuple[Path, Installer]) -> None:
    """0.10 after 0.9; wheels for other machines count; withdrawn ones and pre-releases are marked."""
    root, installer = index
    wheel = "vllm-0.9.2-cp38-abi3-win_arm64.whl"
    names = ["vllm-0.10.2.tar.gz", wheel, "vllm-0.10.0rc1.tar.gz", "vllm-0.5.3.tar.gz", "vllm-0.10.2.post1.tar.gz"]
    offer(root, *names, attributes={"vllm-0.5.3.tar.gz": ' data-yanked="a mistake"'})
    found = releases("vllm", installer)
    assert [one.version for one in found] == ["0.5.3", "0.9.2", "0.10.0rc1", "0.10.2", "0.10.2.post1"]
    assert [one.version for one in found if one.yanked] == ["0.5.3"]
    assert [one.version for one in found if one.pre] == ["0.10.0rc1"]
    assert [one.version for one in releases("vllm", installer, sdist=True)] == [
        "0.5.3", "0.10.0rc1", "0.10.2", "0.10.2.post1",
    ]  # fmt: skip
