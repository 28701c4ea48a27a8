"""`gptq-diff kernels build|fetch|list|remove`, as they are typed; compiling processes are stand-ins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gptq_diff.cli import kernels_build
from gptq_diff.releases import Release
from gptq_diff.upstream.build import How, Listener, Outcome
from gptq_diff.upstream.installer import Installer
from gptq_diff.upstream.pack import read_pack
from gptq_diff.upstream.store import Store, user_store
from tests.upstream.made import sdist
from tests.upstream.test_store import keep

Program = Callable[..., tuple[int, str, str]]

RELEASE = Release("vllm", "0.5.1")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip is set to look in a folder that has vLLM 0.5.1 and 0.6.0, made up."""
    for version in ("0.5.1", "0.6.0"):
        sdist(tmp_path / "files", f"vllm-{version}")
    found = Installer(index_urls=(), find_links=(str(tmp_path / "files"),))
    monkeypatch.setattr(kernels_build, "installer_here", lambda python, environment: found)
    return tmp_path / "files"


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> list[How]:
    """Every release compiles but 0.6.0; how each was asked for."""
    asked = []

    def build_all(packs: Sequence[Path], store: Store, how: How, listen: Listener) -> list[Outcome]:
        asked.append(how)
        outcomes = []
        for pack in packs:
            release = read_pack(pack).release
            listen(release)
            failure = f"{release}: it does not compile: q.cu(7): error: x" if release.version == "0.6.0" else None
            folder = None if failure else keep(store, release.version)
            log = store.log(release)
            hint = f"the log is {log}" if failure else None
            outcomes.append(Outcome(release, folder, failure, hint, False, 61.2, log))
            listen(outcomes[-1])
        return outcomes

    monkeypatch.setattr(kernels_build, "build_all", build_all)
    return asked


class TestBuild:
    def test_lines_for_a_person(self, index: Path, compilers: list[How], program: Program) -> None:
        """What goes on, and what to write after --backends."""
        code, out, err = program("kernels", "build", "vllm==0.5.1", "--arch", "9.0", "--jobs", "2")
        assert (code, out) == (0, "")
        assert err.splitlines() == [
            "fetching the source distribution of vllm==0.5.1", "vllm==0.5.1: compiling",
            "vllm==0.5.1: 61 s; --backends vllm==0.5.1:exllama",
        ]  # fmt: skip
        assert (compilers[0].arch, compilers[0].jobs, compilers[0].timeout) == ("9.0", 2, None)

    def test_json(self, index: Path, compilers: list[How], program: Program) -> None:
        """Every release with its backends, also where one failed; then exit 3 with its first error."""
        code, out, err = program("kernels", "build", "vllm==0.5.1", "vllm==0.6.0", "--json")
        assert code == 3
        first, second = json.loads(out)["releases"]
        assert first["folder"] == str(user_store().kept(RELEASE)[0].folder)
        assert first["backends"] == ["vllm==0.5.1:exllama", "vllm==0.5.1:reconstruct", "vllm==0.5.1:gptq"]
        assert (second["folder"], second["failure"]) == (None, "vllm==0.6.0: it does not compile: q.cu(7): error: x")
        assert err.splitlines() == [
            "gptq-diff: vllm==0.6.0: it does not compile: q.cu(7): error: x",
            f"  hint: the log is {user_store().log(Release('vllm', '0.6.0'))}",
        ]

    def test_several_that_fail_are_counted(
        self, index: Path, program: Program, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each has its line above; the last one names them all."""
        sdist(index, "vllm-0.7.0")

        def build_all(packs: Sequence[Path], store: Store, how: How, listen: Listener) -> list[Outcome]:
            return [
                Outcome(read_pack(pack).release, None, "no", "look there", False, 1.0, Path("log")) for pack in packs
            ]

        monkeypatch.setattr(kernels_build, "build_all", build_all)
        code, _, err = program("kernels", "build", "vllm==0.6.0", "vllm==0.7.0", "-q")
        assert code == 3
        assert "2 of 2 releases were not compiled: vllm==0.6.0, vllm==0.7.0" in err

    def test_from_carried_packs_without_a_network(
        self, index: Path, compilers: list[How], program: Program, tmp_path: Path
    ) -> None:
        """What `fetch --out` wrote on another machine is all that is needed."""
        assert program("kernels", "fetch", "vllm==0.5.1", "--out", tmp_path / "packs")[0] == 0
        shutil.rmtree(user_store().root)
        shutil.rmtree(index)
        code, _, err = program("kernels", "build", "vllm==0.5.1", "--sources", tmp_path / "packs")
        assert (code, "fetching" in err) == (0, False)
        code, _, err = program("kernels", "build", "vllm==0.6.0", "--sources", tmp_path / "packs")
        assert code == 2
        assert "holds no source pack of vllm==0.6.0 (packs there: vllm==0.5.1)" in err

    def test_from_a_source_distribution(self, compilers: list[How], program: Program, tmp_path: Path) -> None:
        """As it was downloaded by hand."""
        code, _, err = program("kernels", "build", "vllm==0.5.1", "--sdist", sdist(tmp_path))
        assert (code, "fetching" in err) == (0, False)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["vllm"], "'vllm' names no release"),
            (["vllm==0.5.1", "--arch", "hopper"], "--arch hopper is no compute capability"),
            (["vllm==0.5.1", "--python", "/no/python"], "there is no Python interpreter '/no/python'"),
            (["vllm==0.5.1", "vllm==0.6.0", "--sdist", "x"], "--sdist is one release's"),
            (["vllm==0.5.1", "--sdist", "x", "--sources", "y"], "--sdist and --sources are both given"),
            (["vllm==0.5.1", "--sdist", "none.tar.gz"], "there is no file none.tar.gz"),
            (["vllm==9.9.9"], "has no source distribution of vllm==9.9.9"),
        ],
    )
    def test_bad_arguments(
        self, arguments: list[str], said: str, index: Path, compilers: list[How], program: Program
    ) -> None:
        """Nothing is compiled."""
        code, _, err = program("kernels", "build", *arguments)
        assert code == (3 if "9.9.9" in said else 2)
        assert said in err
        assert compilers == []


class TestFetch:
    def test_into_the_store_and_a_folder_of_ones_own(self, index: Path, program: Program, tmp_path: Path) -> None:
        """Sizes, digests and hashes for a script; one already there is written over, file by file."""
        for _ in range(2):
            code, out, err = program(
                "kernels", "fetch", "vllm==0.5.1", "vllm==0.6.0", "--out", tmp_path / "packs", "--json"
            )
            assert (code, err) == (0, "")
        one, two = json.loads(out)["packs"]
        assert one["folder"] == str(tmp_path / "packs" / "vllm==0.5.1")
        assert read_pack(tmp_path / "packs" / "vllm==0.5.1").release == RELEASE
        assert one["digest"] == two["digest"], "the two made-up releases have the same kernel"
        assert one["sdist"] == "vllm-0.5.1.tar.gz"
        assert user_store().fetched() == [RELEASE, Release("vllm", "0.6.0")]

    def test_lines(self, index: Path, program: Program) -> None:
        """How large, and where."""
        code, out, err = program("kernels", "fetch", "vllm==0.5.1")
        assert (code, out) == (0, "")
        assert err.splitlines()[-1] == f"vllm==0.5.1: 5 files, 0 KB, in {user_store().sources(RELEASE)}"

    def test_a_folder_that_holds_something_else_is_left_alone(
        self, index: Path, program: Program, tmp_path: Path
    ) -> None:
        """Exit 2."""
        (tmp_path / "vllm==0.5.1").mkdir()
        code, _, err = program("kernels", "fetch", "vllm==0.5.1", "--out", tmp_path)
        assert code == 2
        assert "exists and is no source pack" in err
        (tmp_path / "file").write_text("")
        code, _, err = program("kernels", "fetch", "vllm==0.5.1", "--out", tmp_path / "file")
        assert code == 2
        assert "cannot be written" in err


class TestListAndRemove:
    def test_nothing_yet(self, program: Program) -> None:
        """Where it would be."""
        code, out, err = program("kernels", "list")
        assert (code, out) == (0, "")
        assert err.splitlines() == [f"sources fetched: none; all in {user_store().root}"]

    def test_what_there_is(self, index: Path, program: Program) -> None:
        """For a person and for a script."""
        keep(user_store())
        program("kernels", "fetch", "vllm==0.6.0")
        code, _, err = program("kernels", "list")
        assert code == 0
        assert "2.11.0+cu130" in err and "vllm==0.5.1:reconstruct" in err and "sources fetched: vllm==0.6.0;" in err
        code, out, err = program("kernels", "list", "--json")
        assert (code, err) == (0, "")
        listed = json.loads(out)
        assert listed["kernels"][0]["arch"] == "9.0"
        assert listed["sources"] == ["vllm==0.6.0"]

    def test_remove(self, program: Program) -> None:
        """That release; what is not there is exit 2."""
        keep(user_store())
        keep(user_store(), "0.6.0")
        code, _, err = program("kernels", "remove", "vllm==0.5.1")
        assert (code, err) == (0, "removed what there was of vllm==0.5.1\n")
        assert [kept.built.version for kept in user_store().kept()] == ["0.6.0"]
        code, _, err = program("kernels", "remove", "vllm==0.5.1")
        assert code == 2
        assert "there is nothing of vllm==0.5.1 to remove" in err

    def test_they_are_among_the_backends(self, program: Program) -> None:
        """With what they lack here."""
        keep(user_store())
        code, out, _ = program("backends", "--json")
        assert code == 0
        found = {entry["name"]: entry for entry in json.loads(out)["backends"]}
        assert not found["vllm==0.5.1:gptq"]["usable"]
        assert found["vllm==0.5.1:gptq"]["reason"]


def test_a_projects_config_cannot_name_sources(program: Program, tmp_path: Path) -> None:
    """They are compiled, and run."""
    Path("gptq-diff.toml").write_text('[kernels.build]\nsources = "packs"\n')
    code, _, err = program("kernels", "list")
    assert code == 2
    assert "'sources' can run code or reach out" in err
