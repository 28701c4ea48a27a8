"""A pack comes from the nearest place that has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptq_diff.errors import GptqDiffError, UsageError
from gptq_diff.releases import Release
from gptq_diff.upstream.fetch import Where, pack_of
from gptq_diff.upstream.installer import Installer
from gptq_diff.upstream.pack import read_pack
from gptq_diff.upstream.store import Store
from tests.upstream.made import sdist
from tests.upstream.test_pack import packed

RELEASE = Release("vllm", "0.5.1")


def offline() -> Installer:
    """Nobody may ask an index."""
    raise AssertionError("the package index was asked")


def quiet(line: str) -> None:
    """Says nothing."""


def test_from_the_index_into_the_store_once(tmp_path: Path) -> None:
    """The second time nobody asks; a pack that was damaged meanwhile is fetched again. The archive is not kept."""
    archive = sdist(tmp_path / "files")
    store, said = Store(tmp_path / "store"), list[str]()
    where = Where(None, None, lambda: Installer(index_urls=(), find_links=(str(archive.parent),)))
    folder = pack_of(RELEASE, store, where, said.append)
    assert said == ["fetching the source distribution of vllm==0.5.1"]
    assert folder == store.sources(RELEASE)
    assert read_pack(folder).release == RELEASE
    assert not list((tmp_path / "store").rglob("*.tar.gz"))
    assert pack_of(RELEASE, store, Where(None, None, offline), said.append) == folder
    (folder / "csrc/torch_utils.h").unlink()
    pack_of(RELEASE, store, where, said.append)
    assert (folder / "csrc/torch_utils.h").is_file()
    assert len(said) == 2


def test_from_a_source_distribution_at_hand(tmp_path: Path) -> None:
    """Without a network; what is in the store already gives way, since the user named this file."""
    store = Store(tmp_path / "store")
    where = Where(sdist(tmp_path), None, offline)
    folder = pack_of(RELEASE, store, where, quiet)
    (folder / "csrc/torch_utils.h").write_text("changed")
    assert pack_of(RELEASE, store, where, quiet) == folder
    read_pack(folder)
    with pytest.raises(UsageError, match="there is no file"):
        pack_of(RELEASE, store, Where(tmp_path / "none.tar.gz", None, offline), quiet)


def test_from_packs_that_were_carried_here(tmp_path: Path) -> None:
    """They are compiled where they lie."""
    folder = packed(tmp_path / "packs", "any name")
    where = Where(None, tmp_path / "packs", offline)
    assert pack_of(RELEASE, Store(tmp_path / "store"), where, quiet) == folder
    assert not (tmp_path / "store").exists()
    with pytest.raises(UsageError, match=r"holds no source pack of vllm==0\.6\.0 \(packs there: any name\)"):
        pack_of(Release("vllm", "0.6.0"), Store(tmp_path), where, quiet)
    with pytest.raises(UsageError, match="packs there: none"):
        pack_of(RELEASE, Store(tmp_path), Where(None, tmp_path / "nowhere", offline), quiet)


def test_what_cannot_be_fetched_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    """No half pack that a later build would find."""
    (tmp_path / "files").mkdir()
    where = Where(None, None, lambda: Installer(index_urls=(), find_links=(str(tmp_path / "files"),)))
    with pytest.raises(GptqDiffError, match="no source distribution"):
        pack_of(RELEASE, Store(tmp_path / "store"), where, quiet)
    assert not (tmp_path / "store").exists()
