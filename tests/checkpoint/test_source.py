"""--model: a directory, or a Hub id that the local cache holds; the network is never touched here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gptq_diff.checkpoint.reader import open_checkpoint, resolve_model
from gptq_diff.errors import CheckpointError
from tests.checkpoint.build import tiny

hub = pytest.importorskip("huggingface_hub")
hub_constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, as the library itself sees it, with the network off."""
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, absolute or under the home directory."""
    tiny(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("model") == Path("model")
    assert resolve_model("~/model") == tmp_path / "model"
    with open_checkpoint(resolve_model("model")) as checkpoint:
        assert checkpoint.path == tmp_path / "model"


def test_a_cached_hub_id_is_found_by_the_hubs_own_lookup(cache: Path) -> None:
    """The snapshot that refs/main names, opened through the cache's layout of links."""
    commit = "0" * 40
    repository = cache / "models--someone--Tiny-GPTQ"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    blobs = tiny(repository / "blobs")
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(blob)
    assert resolve_model("someone/Tiny-GPTQ") == snapshot
    with open_checkpoint(resolve_model("someone/Tiny-GPTQ")) as checkpoint:
        assert len(checkpoint.layers) == 4


def test_an_id_that_is_not_cached_is_not_fetched(cache: Path) -> None:
    """Without download the cache is all there is, and the sentence says how to allow more."""
    with pytest.raises(CheckpointError, match=r"neither a directory nor a Hub id in the local.*--download"):
        resolve_model("someone/nothing-here")


def test_download_asks_the_hub_and_leaves_pickles_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With download the library may fetch, but no pickles; what it raises becomes a sentence."""
    asked = {}

    def snapshot_download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        raise OSError("no route to host\nmany more lines")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded: no route to host$"):
        resolve_model("someone/model", download=True)
    assert asked["local_files_only"] is False
    assert "*.bin" in asked["ignore_patterns"]


@pytest.mark.parametrize("name", ["./missing", "/no/such/place", "a/b/c", "../x", "bad name"])
def test_a_path_that_does_not_exist_is_not_taken_for_an_id(cache: Path, name: str) -> None:
    """Only something shaped like `name` or `owner/name` is looked up."""
    with pytest.raises(CheckpointError, match="there is no directory"):
        resolve_model(name)


def test_a_file_is_refused(tmp_path: Path) -> None:
    """Somebody gives the safetensors file instead of its directory."""
    with pytest.raises(CheckpointError, match="is a file; give the directory"):
        resolve_model(str(tiny(tmp_path) / "model.safetensors"))


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is optional: its absence is said, not raised."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="without the package huggingface_hub"):
        resolve_model("someone/model")
