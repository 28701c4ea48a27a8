"""What was compiled and fetched is found again, and removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptq_diff.built_file import NAME, Built, read_built
from gptq_diff.errors import BackendError
from gptq_diff.releases import Release
from gptq_diff.upstream.store import Store, user_store
from tests.upstream.test_pack import packed

RELEASE = Release("vllm", "0.5.1")


def keep(
    store: Store, version: str = "0.5.1", torch: str = "2.11.0+cu130", arch: str = "9.0", package: str = "vllm"
) -> Path:
    """A compiled kernel as it lies in the store, with a library that is none."""
    folder = store.builds(Release(package, version)) / f"torch{torch}-sm{arch}"
    folder.mkdir(parents=True)
    (folder / "kernel.so").write_bytes(b"")
    Built(
        package, version, "kernel.so", torch, torch.partition("+")[0], "13.0", arch, "13.0", "digest", 61.0,
        "2026-01-01T00:00:00+00:00",
    ).write(folder)  # fmt: skip
    return folder


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    """By release, by torch and GPU; half-made folders and damaged records are passed over."""
    store = Store(tmp_path)
    assert store.kept() == [] and store.fetched() == []
    one, other, newer = keep(store), keep(store, arch="8.0"), keep(store, "0.33.0")
    (store.builds(RELEASE) / ".part-1-x").mkdir()
    (store.builds(RELEASE) / ".part-1-x" / NAME).write_text("{}")
    (store.builds(RELEASE) / "damaged").mkdir()
    (store.builds(RELEASE) / "damaged" / NAME).write_text("{")
    assert {kept.folder for kept in store.kept()} == {one, other, newer}
    assert {kept.folder for kept in store.kept(RELEASE)} == {one, other}
    assert store.kept(RELEASE)[0].release == RELEASE
    packed(tmp_path / "sources", "vllm==0.5.1")
    (tmp_path / "sources" / "vllm==0.5.1-sdist" / "vllm-0.5.1.tar.gz").unlink()
    assert store.fetched() == [RELEASE]


def test_a_release_is_removed_and_no_other(tmp_path: Path) -> None:
    """Kernels, pack and log; a link in its place is not followed."""
    store = Store(tmp_path / "store")
    keep(store)
    newer = keep(store, "0.5.10")
    packed(tmp_path / "store" / "sources", "vllm==0.5.1")
    store.log(RELEASE).parent.mkdir()
    store.log(RELEASE).write_text("said")
    assert store.remove(RELEASE)
    assert (
        not store.builds(RELEASE).exists() and not store.sources(RELEASE).exists() and not store.log(RELEASE).exists()
    )
    assert [kept.folder for kept in store.kept()] == [newer]
    assert not store.remove(RELEASE)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    store.builds(RELEASE).symlink_to(elsewhere)
    assert not store.remove(RELEASE)
    assert elsewhere.is_dir()


def test_a_record_that_is_damaged_is_said(tmp_path: Path) -> None:
    """A worker reads it too."""
    with pytest.raises(BackendError, match="holds no kernel that was built"):
        read_built(tmp_path)
    (tmp_path / NAME).write_text('{"package": "vllm"}')
    with pytest.raises(BackendError, match="holds no kernel that was built"):
        read_built(tmp_path)
    folder = keep(Store(tmp_path))
    assert read_built(folder).release == "vllm==0.5.1"


def test_the_users_store_is_where_environments_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both cost minutes to make."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert user_store().root == tmp_path / "gptq-diff" / "kernels"
