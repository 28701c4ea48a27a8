"""Releases judged by their compiled kernels; the compilers are stand-ins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gptq_diff.bisection import compiled
from gptq_diff.bisection.compiled import Kernels
from gptq_diff.bisection.search import GOOD, UNJUDGED, Verdict
from gptq_diff.releases import Release
from gptq_diff.upstream.build import How, Listener, Outcome
from gptq_diff.upstream.fetch import Where
from gptq_diff.upstream.installer import Installer
from gptq_diff.upstream.pack import read_pack
from gptq_diff.upstream.store import Store
from tests.upstream.made import sdist


def build_all(packs: Sequence[Path], store: Store, how: How, listen: Listener) -> list[Outcome]:
    """0.7.0 does not compile."""
    release = read_pack(packs[0]).release
    failure = "vllm==0.7.0: it does not compile: x.cu(1): error" if release.version == "0.7.0" else None
    return [Outcome(release, None if failure else Path("folder"), failure, None, False, 1.0, Path("log"))]


def test_a_release_is_compiled_and_judged_or_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in the index, or does not compile, is no verdict; the reason is kept."""
    monkeypatch.setattr(compiled, "build_all", build_all)
    for version in ("0.6.0", "0.7.0"):
        sdist(tmp_path / "files", f"vllm-{version}")
    where = Where(None, None, lambda: Installer(index_urls=(), find_links=(str(tmp_path / "files"),)))
    how, asked = How(Path(sys.executable), tmp_path, "9.0", 1, None, {}), list[Release]()
    said = list[str]()

    def decide(release: Release) -> Verdict:
        asked.append(release)
        return Verdict(GOOD, "made up")

    judge = Kernels("vllm", Store(tmp_path / "store"), how, where, decide, said.append)
    assert judge("0.6.0") == Verdict(GOOD, "made up")
    assert asked == [Release("vllm", "0.6.0")]
    assert said == ["fetching the source distribution of vllm==0.6.0", "vllm==0.6.0: compiling"]
    assert judge("0.7.0") == Verdict(UNJUDGED, "vllm==0.7.0: it does not compile: x.cu(1): error")
    missing = judge("0.8.0")
    assert missing.kind == UNJUDGED and "no source distribution of vllm==0.8.0" in missing.said
    assert len(asked) == 1
