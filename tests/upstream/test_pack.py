"""Source packs: written whole, checked file by file, the same bytes on any machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff.errors import GptqDiffError, UsageError
from gptq_diff.releases import Release
from gptq_diff.upstream.pack import Pack, packs_in, read_pack, write_pack
from gptq_diff.upstream.select import select
from tests.upstream.made import MIDDLE, VLLM, sdist

RELEASE = Release("vllm", "0.5.1")
GEMM = "csrc/quantization/gptq/q_gemm.cu"


def packed(tmp_path: Path, name: str = "pack", gemm: str | None = None, release: Release = RELEASE) -> Path:
    """A pack of the made-up release."""
    archive = sdist(tmp_path / f"{name}-sdist", f"{release.package}-{release.version}", gemm=gemm)
    write_pack(select(archive, release), release, archive, tmp_path / name)
    return tmp_path / name


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """With the hash of the source distribution that it came from."""
    folder = packed(tmp_path)
    pack = read_pack(folder)
    archive = tmp_path / "pack-sdist" / "vllm-0.5.1.tar.gz"
    assert (pack.release, pack.sdist) == (RELEASE, "vllm-0.5.1.tar.gz")
    assert pack.sdist_sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert {path: (folder / path).read_text() for path in pack.files} == {path: VLLM[path] for path in pack.files}
    assert pack.text_of(folder, pack.sources[0]) == VLLM[GEMM]


def test_releases_with_the_same_kernel_have_the_same_digest(tmp_path: Path) -> None:
    """So that a table can say that a release changed nothing; another licence is not another kernel."""
    one, same = read_pack(packed(tmp_path, "a")), read_pack(packed(tmp_path, "b", release=Release("vllm", "0.6.0")))
    other = read_pack(packed(tmp_path, "c", gemm=MIDDLE))
    assert one.digest == same.digest != other.digest
    assert replace(one, files={**one.files, "LICENSE": "0" * 64}).digest == one.digest
    assert replace(one, include="elsewhere").digest != one.digest


@pytest.mark.parametrize("spoil", ["change", "remove"])
def test_a_file_that_is_not_as_it_was_is_named(spoil: str, tmp_path: Path) -> None:
    """A pack that a copy damaged would compile to another kernel, or blame the release."""
    folder = packed(tmp_path)
    if spoil == "change":
        (folder / GEMM).write_text("other")
    else:
        (folder / GEMM).unlink()
    with pytest.raises(UsageError, match=r"q_gemm\.cu is missing or is not as it was fetched"):
        read_pack(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside"])
def test_a_record_that_names_files_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    """Packs are carried about, and compiled."""
    folder = packed(tmp_path)
    record = json.loads((folder / "pack.json").read_text())
    record["files"] = {name: "0" * 64}
    (folder / "pack.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="it names the file"):
        read_pack(folder)


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"files": 3}'])
def test_a_record_that_is_none_is_refused(record: str, tmp_path: Path) -> None:
    """As is a folder without one."""
    folder = packed(tmp_path)
    (folder / "pack.json").write_text(record)
    with pytest.raises(UsageError, match="is no source pack"):
        read_pack(folder)
    with pytest.raises(UsageError, match="is no source pack"):
        read_pack(tmp_path / "nowhere")


def test_an_older_pack_is_replaced_whole(tmp_path: Path) -> None:
    """Files that only the old one had are gone, and nothing else is left beside it."""
    folder = packed(tmp_path)
    (folder / "stray.cu").write_text("left over")
    shutil.rmtree(tmp_path / "pack-sdist")
    packed(tmp_path, gemm=MIDDLE)
    assert "use_v2_format" in (folder / GEMM).read_text()
    assert not (folder / "stray.cu").exists()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["pack", "pack-sdist"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """A folder of the user's in the way is not touched."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "theirs").write_text("keep")
    with pytest.raises(GptqDiffError, match="cannot be written"):
        packed(tmp_path)
    assert (tmp_path / "pack" / "theirs").read_text() == "keep"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["pack", "pack-sdist"]


def test_packs_are_found_in_a_folder_and_one_by_itself(tmp_path: Path) -> None:
    """`--sources` takes either; what a killed gptq-diff left is passed over."""
    one = packed(tmp_path / "packs", "vllm==0.5.1")
    two = packed(tmp_path / "packs", "vllm==0.6.0", release=Release("vllm", "0.6.0"))
    shutil.copytree(one, tmp_path / "packs" / ".part-x")
    assert packs_in(tmp_path / "packs") == [one, two]
    assert packs_in(one) == [one]
    assert packs_in(tmp_path / "nowhere") == []
    assert isinstance(read_pack(two), Pack)
