"""A case written from a run says all that the run was asked, and reads back as it was meant."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.cases.new import case_text, new_case, quoted
from gptq_diff.cases.read import read_case
from gptq_diff.errors import CannotJudge, UsageError
from gptq_diff.records import Prompt
from gptq_diff.report.json_report import read_report
from gptq_diff.session.asked import RunRecord
from tests.report.build import HOSTILE
from tests.session.in_process import asked, run

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def finished(shifted_model, tmp_path):
    """A failing run: its directory, run.json, report.json and prompts."""
    root = tmp_path / "run"
    run(asked(shifted_model, "sim-exllama", max_new_tokens=4), root)
    place = RunDir.open_finished(root)
    return root, RunRecord.from_json(place.run()), read_report(root / "report.json"), place.prompts()


def read_back(tmp_path, *given):
    folder = tmp_path / "case"
    folder.mkdir(exist_ok=True)
    (folder / "case.toml").write_text(case_text(*given), encoding="utf-8")
    return read_case(folder)


def test_what_happened_is_what_is_expected(finished, tmp_path):
    """Prompts as token ids, backends in order, an expectation for each result."""
    _, record, report, prompts = finished
    case = read_back(tmp_path, "mine", record, report, prompts)
    assert [p.token_ids for p in case.prompts] == [p.token_ids for p in prompts]
    assert (case.backends, case.reference) == (("sim-exllama",), "hf-fp32")
    found = {(e.backend, e.prompt): (e.status, e.layer, e.cause, e.collapsed) for e in case.expect}
    assert set(found) == {(r.backend, r.prompt) for r in report.results}
    for r in report.results:
        status, layer, _, collapsed = found[r.backend, r.prompt]
        assert (status, layer) == (r.status, r.first_bad.layer if r.first_bad else None)
        assert bool(collapsed) == r.collapsed


def test_how_it_was_run_comes_along(finished, tmp_path):
    """Repeats, forced tokens, the prefix cache; a run that was asked for none of them has none."""
    _, record, report, prompts = finished
    plain = read_back(tmp_path, "mine", record, report, prompts)
    assert (plain.repeats, plain.teacher_force, plain.prefix_cache) == (1, False, False)
    more = replace(record, repeats=3, teacher_force=True, prefix_cache=True)
    case = read_back(tmp_path, "mine", more, report, prompts)
    assert (case.repeats, case.teacher_force, case.prefix_cache) == (3, True, True)


def test_a_damaged_checkpoint_keeps_its_sound_one(finished, tmp_path):
    """Both paths are named; without the second the case would judge the damage by itself."""
    _, record, report, prompts = finished
    damaged = replace(record, reference_model=replace(record.model, path="/models/sound"))
    case = read_back(tmp_path, "mine", damaged, report, prompts)
    assert (case.model.path, case.model.reference_path) == (record.model.path, "/models/sound")


def test_hostile_text_stays_text(finished, tmp_path):
    """Prompts and summaries may hold anything; the file reads back, with nothing more in it."""
    _, record, report, _ = finished
    prompt = Prompt("short", (1, 2), f'{HOSTILE}\n[run]\nbackends = ["x"]\n"""', "s")
    said = replace(report, verdict=replace(report.verdict, summary=f'{HOSTILE} " \\ \n[model]'))
    results = tuple(replace(r, prompt="short") for r in report.results[:1])
    case = read_back(tmp_path, "mine", record, replace(said, results=results), (prompt,))
    assert [p.id for p in case.prompts] == ["short"]
    assert case.backends == ("hf-fp32",)
    assert quoted('a"\\\u00e9\U0001f600\x7f') == '"a\\"\\\\\u00e9\U0001f600"'


def test_a_run_that_has_not_finished_expects_nothing(finished, tmp_path):
    """What was interrupted must not become what is normal."""
    root = finished[0]
    raw = json.loads((root / "run.json").read_text())
    (root / "run.json").write_text(json.dumps({**raw, "state": "interrupted"}))
    with pytest.raises(CannotJudge, match="has not finished"):
        new_case(root, "mine", tmp_path / "out")


def test_a_name_that_is_none_is_refused(finished, tmp_path):
    """It names a folder."""
    with pytest.raises(UsageError, match="cannot name a case"):
        new_case(finished[0], "../x", tmp_path / "out")
    assert not (tmp_path / "out").exists()
