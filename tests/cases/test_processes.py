"""Checks as programs: a case that crashes, a check that is interrupted, two at once, and a guard that is blinded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gptq_diff
from gptq_diff.cases.read import read_case
from gptq_diff.cases.runner import run_cases
from gptq_diff.cases.tasks import Task
from gptq_diff.processes import descendants, running
from gptq_diff.records import ERROR, HELD
from tests.cases.written import BANG, write_case

pytestmark = pytest.mark.slow
PATIENCE = 900
"""Seconds; these take some tens on a machine of its own."""
HEALTHY = BANG[: BANG.index("[[expect]]")].replace("gain = 8", "gain = 1").replace('"hf-fp16", "sim-gptq"', '"hf-fp16"')
HEALTHY = HEALTHY.replace("max_new_tokens = 4", "max_new_tokens = 1") + '[[expect]]\nstatus = "agree"\n'


def healthy(folder, name):
    return write_case(folder / name, HEALTHY, ('name = "bang"', f'name = "{name}"'))


def program(*arguments, at, root=None, cache=None):
    """The program's own process, in the directory `at`: where one stands comes before PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": str(root or Path(gptq_diff.__file__).parents[1])}
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    return subprocess.Popen(
        [sys.executable, "-m", "gptq_diff", *map(str, arguments)], env=environment, text=True, cwd=at,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process):
    """(exit code, standard output, standard error)."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def test_a_case_that_crashes_costs_itself_alone(tmp_path):
    """Its process dies with it; the next case runs in another one, and holds."""
    good = read_case(healthy(tmp_path, "good"))
    gone = read_case(healthy(tmp_path, "gone"))
    gone.file.unlink()
    tasks = [(case, Task(str(case.file), str(tmp_path / "out" / case.name))) for case in (gone, good)]
    told = []
    crashed, held = run_cases(
        tasks, tmp_path / "logs", lambda place, outcome: told.append(place), jobs=1, keep_going=True
    )
    assert (crashed.name, crashed.state) == ("gone", ERROR)
    assert "took its process with it" in crashed.reason
    assert "does not exist" in crashed.reason
    assert (held.name, held.state) == ("good", HELD)
    assert told == [0, 1]


def test_an_interrupted_check_goes_on_and_reports_nothing_stale(tmp_path):
    """Ctrl-C ends it with 130 and leaves no process; the next takes what is whole and the same, and runs the rest."""
    first, second, third = (healthy(tmp_path / "cases", name) for name in ("a", "b", "c"))
    check = ("check", first, second, third, "--out", tmp_path / "check", "--seed", 9)
    process = program(*check, at=tmp_path)
    done = tmp_path / "check" / "cases" / "b" / "outcome.json"
    until = time.monotonic() + PATIENCE
    while not done.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    below = descendants(process.pid, running())
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 130, err
    assert json.loads((tmp_path / "check" / "check.json").read_text())["state"] == "running"
    assert not below & set(running().values())
    second.write_text(second.read_text() + "# edited meanwhile\n")
    code, out, err = ended(program(*check, "--json", at=tmp_path))
    assert code == 0, err
    found = {case["name"]: case for case in json.loads(out)["cases"]}
    assert [found[name]["state"] for name in "abc"] == ["held"] * 3
    assert [found[name]["reused"] for name in "abc"] == [True, False, False]


def test_two_checks_at_once_do_not_disturb_each_other(tmp_path):
    """Both build the same models in one empty cache; a third one in the first one's directory is turned away."""
    file = healthy(tmp_path, "a")
    started = [
        program("check", file, "--out", tmp_path / name, "--json", "--seed", 5, at=tmp_path, cache=tmp_path / "cache")
        for name in ("one", "two")
    ]
    while not (tmp_path / "one" / "check.json").exists() and started[0].poll() is None:
        time.sleep(0.05)
    code, _, err = ended(program("check", file, "--out", tmp_path / "one", "--overwrite", at=tmp_path))
    assert (code, "another check is at work" in err) == (2, True), err
    for process in started:
        code, out, err = ended(process)
        assert code == 0, err
        report = json.loads(out)
        assert [case["state"] for case in report["cases"]] == ["held"]
        assert report["self_test"]["sees"]


def blinded(to):
    """A copy of the program whose judge takes every error for rounding."""
    package = Path(gptq_diff.__file__).parent
    shutil.copytree(package, to / "gptq_diff", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(package.parent / "cases", to / "cases")
    floors = to / "gptq_diff" / "numerics" / "floors.py"
    text = floors.read_text(encoding="utf-8")
    assert text.count("\nFACTOR = 3.0\n") == 1
    floors.write_text(text.replace("\nFACTOR = 3.0\n", "\nFACTOR = 3.0e30\n"), encoding="utf-8")
    return to


def test_a_blinded_judge_is_found_out(tmp_path):
    """Every case is green, and yet the check ends with 3 and says that this guard does not see."""
    file = healthy(tmp_path, "a")
    arguments = ("check", file, "--out", tmp_path / "check", "--seed", 0, "--junit", tmp_path / "junit.xml")
    code, _, err = ended(program(*arguments, at=tmp_path, root=blinded(tmp_path / "blind")))
    assert code == 3, err
    assert "this guard does not see" in err
    report = json.loads((tmp_path / "check" / "check.json").read_text())
    assert [case["state"] for case in report["cases"]] == ["held"]
    assert not report["self_test"]["sees"]
    assert '<error type="blind"' in (tmp_path / "junit.xml").read_text()
