"""`gptq-diff check` and `gptq-diff cases`: the command line; what runs is played or runs in this process."""

from __future__ import annotations

import json

import pytest

from gptq_diff.cases import check as check_module
from gptq_diff.cases.read import read_case
from gptq_diff.cases.run_case import run_case
from gptq_diff.records import FAILED, HELD, CaseOutcome
from tests.cases.test_check import Played
from tests.cases.written import write_case
from tests.session.in_process import asked, run


@pytest.fixture
def played(monkeypatch):
    found = Played()
    monkeypatch.setattr(check_module, "run_cases", found)
    return found


def test_a_check_that_holds(program, played, tmp_path):
    """Exit 0; a line a case, the table, and the files that were asked for."""
    code, out, err = program(
        "check", "tiny-qwen2-bang", "group-32", "--seed", 2, "--junit", tmp_path / "a" / "j.xml",
        "--summary", tmp_path / "s.md", "--out", tmp_path / "c",
    )  # fmt: skip
    assert (code, out) == (0, "")
    assert "tiny-qwen2-bang: held" in err
    assert "self-test: the planted fault was found (seed 2)" in err
    assert (tmp_path / "a" / "j.xml").read_text().startswith("<?xml")
    assert (tmp_path / "s.md").read_text().startswith("## gptq-diff check: every expectation held")
    assert json.loads((tmp_path / "c" / "check.json").read_text())["state"] == "finished"


def test_the_summary_is_appended(program, played, tmp_path):
    """A job's page may have one already."""
    (tmp_path / "s.md").write_text("# before\n")
    program("check", "group-32", "--summary", tmp_path / "s.md", "--quiet")
    assert (tmp_path / "s.md").read_text().startswith("# before\n## gptq-diff check")


def test_json(program, played, tmp_path):
    """The whole report on stdout, nothing else there, whatever the exit code."""
    played.outcomes = {"group_32": CaseOutcome("group-32", FAILED)}
    code, out, err = program("check", "group-32", "--json", "--out", tmp_path / "c")
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert (report["schema_version"], report["exit_code"], report["cases"][0]["state"]) == (1, 1, "failed")


def test_all_shipped_without_a_name_and_by_shard(program, played, tmp_path):
    """Shards together run every shipped case once."""
    names = []
    for number in (1, 2):
        code, out, _ = program("check", "--json", "--shard", f"{number}/2")
        assert code == 0
        names += [case["name"] for case in json.loads(out)["cases"]]
    _, listed, _ = program("cases", "list", "--json")
    assert sorted(names) == sorted(case["name"] for case in json.loads(listed)["cases"])


BAD = {
    ("check", "nowhere"): "there is no case 'nowhere'",
    ("check", "group-32", "--shard", "3/2"): "is not I/N",
    ("check", "group-32", "--shard", "x"): "is not I/N",
    ("check", "group-32", "--baseline", "b.json"): "the baseline b.json does not exist",
    ("check", "group-32", "--update-baseline"): "has no file to write to",
    ("check", "group-32", "--backends", "hf-fp17"): "there is no backend named 'hf-fp17'",
    ("check", "group-32", "--backends", "hf-fp16,,b"): "empty entry",
    ("cases", "show", "group-33"): "did you mean 'group-32'",
    ("cases", "new", "nowhere"): "is not a run of gptq-diff",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_sentence(program, played, arguments):
    """Exit 2 before anything has run."""
    code, out, err = program(*arguments)
    assert (code, out, played.tasks) == (2, "", [])
    assert BAD[arguments] in err
    assert "Traceback" not in err


def test_a_baseline_is_written_then_compared_with(program, played, tmp_path):
    """--update-baseline makes the file; the same figures hold against it, and the next check names it."""
    code, _, err = program("check", "group-32", "--baseline", "b.json", "--update-baseline")
    assert code == 0, err
    assert json.loads((tmp_path / "cwd" / "b.json").read_text())["gptq_diff_baseline"] == 1
    code, out, err = program("check", "group-32", "--baseline", "b.json", "--json")
    assert code == 0, err
    assert json.loads(out)["baseline"] == "b.json"


def test_cases_are_listed_and_shown(program):
    """For people on stderr; the case file as it is."""
    code, _, err = program("cases", "list")
    assert code == 0
    assert "qwen2.5-32b-short-default-system" in err
    code, _, err = program("cases", "show", "group-32")
    assert code == 0
    assert "group_size = 32" in err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("backend", ["sim-exllama", "hf-fp16"])
def test_a_case_from_a_run_holds(program, shifted_model, tmp_path, backend):
    """Written from what happened, it holds when it is run; written again, it is refused."""
    run(asked(shifted_model, backend, max_new_tokens=4), tmp_path / "run")
    code, _, err = program("cases", "new", tmp_path / "run", "--name", "mine", "--out", tmp_path / "mine")
    assert code == 0, err
    case = read_case(tmp_path / "mine")
    assert (case.name, case.reference) == ("mine", "hf-fp32")
    outcome = run_case(case, out=tmp_path / "out")
    assert outcome.state == HELD, (outcome.reason, [c.differences for c in outcome.checks])
    assert all(check.stated for check in outcome.checks)
    code, _, err = program("cases", "new", tmp_path / "run", "--name", "mine", "--out", tmp_path / "mine")
    assert code == 2
    assert "exists" in err


def test_a_case_that_lies_in_the_folder_to_be_emptied(program, played, tmp_path):
    """It would be gone before it is read again."""
    file = write_case(tmp_path / "c" / "bang")
    code, _, err = program("check", file, "--out", tmp_path / "c")
    assert (code, file.is_file()) == (2, True)
    assert "is emptied before" in err
