"""What is taken out of a source distribution, and what a hostile or a wrong one gets."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from gptq_diff.errors import GptqDiffError, UsageError
from gptq_diff.releases import Release
from gptq_diff.upstream import archive as archive_module
from gptq_diff.upstream.select import select
from tests.upstream.made import GPTQMODEL, VLLM, add, sdist

RELEASE = Release("vllm", "0.5.1")
GPTQ = "csrc/quantization/gptq"


def test_the_kernel_and_what_it_includes_is_kept_and_nothing_else(tmp_path: Path) -> None:
    """By #include, through files that include each other; the licence goes along, since packs are carried about."""
    selected = select(sdist(tmp_path), RELEASE)
    assert list(selected.files) == [
        "LICENSE", f"{GPTQ}/compat.cuh", f"{GPTQ}/nested.h", f"{GPTQ}/q_gemm.cu", "csrc/torch_utils.h",
    ]  # fmt: skip
    assert (selected.sources, selected.include) == ((f"{GPTQ}/q_gemm.cu",), "csrc")
    assert selected.files["LICENSE"] == b"a licence\n"


def test_a_kernel_that_moved_below_csrc_is_found(tmp_path: Path) -> None:
    """vLLM moves its kernels file by file to another folder of csrc."""
    moved = {name.replace("csrc/", "csrc/libtorch_stable/"): content for name, content in VLLM.items()}
    selected = select(sdist(tmp_path, files=moved), RELEASE)
    assert selected.include == "csrc/libtorch_stable"
    assert selected.sources == ("csrc/libtorch_stable/quantization/gptq/q_gemm.cu",)
    assert "csrc/libtorch_stable/torch_utils.h" in selected.files


def test_gptqmodels_exllama_v2_is_three_sources_and_their_headers(tmp_path: Path) -> None:
    """Headers are looked for beside the file first, then in the extension's folder; AWQ's and Marlin's stay out."""
    selected = select(sdist(tmp_path, "GPTQModel-7.7.0", GPTQMODEL), Release("gptqmodel", "7.7.0"))
    assert sorted(selected.files) == sorted(
        f"gptqmodel_ext/exllamav2/{name}"
        for name in ("ext_gptq.cpp", "config.h", "cuda/q_matrix.cuh", "cuda/q_matrix.cu", "cuda/q_gemm.cu")
    )


@pytest.mark.parametrize(
    ("package", "files", "looked_for"),
    [("vllm", {"setup.py": ""}, "csrc/quantization/gptq/q_gemm.cu"), ("gptqmodel", {}, "gptqmodel_ext/exllamav2")],
)
def test_a_release_without_the_kernel_is_told_so(
    package: str, files: dict[str, str], looked_for: str, tmp_path: Path
) -> None:
    """Exit 3: nothing is wrong with what the user typed."""
    with pytest.raises(GptqDiffError, match=f"of {package}==1.0 has no {looked_for}") as caught:
        select(sdist(tmp_path, f"{package}-1.0", files), Release(package, "1.0"))
    assert caught.value.exit_code == 3


def test_another_releases_archive_is_refused(tmp_path: Path) -> None:
    """`--sdist` of the wrong file would otherwise be judged under the wrong name."""
    with pytest.raises(UsageError, match=r"is not the source distribution of vllm==0\.6\.0: it holds vllm-0\.5\.1"):
        select(sdist(tmp_path), Release("vllm", "0.6.0"))


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08 broken"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    """In a sentence."""
    file = tmp_path / "vllm-0.5.1.tar.gz"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot be read as a source distribution|no csrc"):
        select(file, RELEASE)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    """A download that was cut short is never half a pack."""
    file = sdist(tmp_path)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UsageError, match="cannot be read as a source distribution"):
        select(file, RELEASE)


def hostile(folder: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"evil") -> Path:
    """A sound archive with one more member."""
    file = folder / "vllm-0.5.1.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for path, text in VLLM.items():
            add(tar, f"vllm-0.5.1/{path}", text.encode())
        add(tar, name, content, kind, link)
    return file


@pytest.mark.parametrize(
    "name",
    ["vllm-0.5.1/../../evil.cu", "/etc/evil.cu", "vllm-0.5.1/csrc/../../../evil.cu", "vllm-0.5.1/csrc/a\\..\\b.cu"],
)
def test_names_that_lead_out_are_passed_over(name: str, tmp_path: Path) -> None:
    """Nothing is unpacked in any case; they do not become files of a pack either."""
    selected = select(hostile(tmp_path, name), RELEASE)
    assert b"evil" not in selected.files.values()
    assert [place.name for place in tmp_path.iterdir()] == ["vllm-0.5.1.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_in_the_place_of_a_source_is_refused(kind: bytes, tmp_path: Path) -> None:
    """It could name any file of this machine."""
    file = hostile(tmp_path, f"vllm-0.5.1/{GPTQ}/more.cuh", kind, "/etc/passwd", b"")
    with pytest.raises(UsageError, match="is a link, not a file"):
        select(file, RELEASE)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred bytes of gzip can hold gigabytes; so can many small files."""
    big = hostile(tmp_path, "vllm-0.5.1/csrc/big.cu", content=b"x" * 3000)
    monkeypatch.setattr(archive_module, "FILE_BYTES", 2000)
    with pytest.raises(UsageError, match="too large to be a kernel source"):
        select(big, RELEASE)
    monkeypatch.setattr(archive_module, "FILE_BYTES", 4000)
    monkeypatch.setattr(archive_module, "TOTAL_BYTES", 3000)
    with pytest.raises(UsageError, match="too large to be a kernel source"):
        select(big, RELEASE)
