from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.errors import CannotJudge, CaptureError, UsageError
from gptq_diff.records import Prompt
from tests.capture.captures import write_capture

OURS = {"schema_version": 1, "gptq_diff": "0.1.0", "state": "finished"}


def finished_run(root: Path) -> RunDir:
    run = RunDir.create(root, overwrite=False)
    run.write_run(OURS)
    write_capture(run.capture("hf-fp16", "p1"))
    run.log("hf-fp16").parent.mkdir()
    run.log("hf-fp16").write_text("words")
    run.release()
    return run


def test_a_new_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    """The default --out lies in a directory that may not exist yet."""
    run = RunDir.create(tmp_path / "a" / "b", overwrite=False)
    assert run.root.is_dir()
    run.write_run(OURS)
    assert RunDir.open_finished(run.root).run() == OURS


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "captures/x", "report.json"])
def test_a_directory_of_somebody_else_is_refused_and_left_alone(tmp_path: Path, name: str, overwrite: bool) -> None:
    """--overwrite or not."""
    place = tmp_path / "out" / name
    place.parent.mkdir(parents=True)
    place.write_text("theirs")
    with pytest.raises(UsageError, match="is not empty and not a run of gptq-diff"):
        RunDir.create(tmp_path / "out", overwrite=overwrite)
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [place]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "finished"}', '{"schema_version": 1}'])
def test_another_tools_run_json_does_not_make_it_ours(tmp_path: Path, text: str) -> None:
    """run.json, logs/ and weights/ are common names: nothing is deleted unless we wrote it."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "theirs").write_text("precious")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, match="not a run of gptq-diff"):
        RunDir.create(tmp_path, overwrite=True)
    assert (tmp_path / "weights" / "theirs").read_text() == "precious"


def test_a_run_is_kept_without_overwrite(tmp_path: Path) -> None:
    """The refusal names both ways out, changes nothing, and does not stay in the way."""
    finished_run(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(UsageError, match="already holds a run") as e:
            RunDir.create(tmp_path / "run", overwrite=False)
        assert "--overwrite" in str(e.value.hint)
    assert RunDir.open_finished(tmp_path / "run").reader("hf-fp16", "p1").manifest.tokens == (7,)


def test_overwrite_clears_what_runs_write_and_nothing_else(tmp_path: Path) -> None:
    """No capture of the old run can be taken for one of the new; a file the user put there stays."""
    finished_run(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("mine too")
    (tmp_path / "run" / "weights").symlink_to(elsewhere)
    run = RunDir.create(tmp_path / "run", overwrite=True)
    assert sorted(p.name for p in run.root.iterdir()) == ["lock", "notes.txt"]
    assert (elsewhere / "kept").exists()


HOLD = """
import sys
from pathlib import Path
from gptq_diff.capture.run_dir import RunDir
run = RunDir.create(Path(sys.argv[1]), overwrite=True)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    """Another process holds it, with --overwrite too; once that has been killed, the directory is free."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="is in use by another run"):
                RunDir.create(tmp_path / "run", overwrite=overwrite)
    finally:
        holder.kill()
        holder.communicate()
    RunDir.create(tmp_path / "run", overwrite=False)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A file there, or above it."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/1/run")):
        with pytest.raises(UsageError, match=f"the output directory {place} cannot be written: ") as e:
            RunDir.create(place, overwrite=False)
        assert e.value.exit_code == 2


def test_what_is_no_run_cannot_be_opened(tmp_path: Path) -> None:
    """compare and report say so for a wrong path, exit 2."""
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=r"it has no run\.json"):
            RunDir.open_finished(place)


def test_damaged_files_of_a_run_are_one_sentence(tmp_path: Path) -> None:
    """run.json and prompts.json that cannot be read: exit 3, with the file's name."""
    run = finished_run(tmp_path / "run")
    with pytest.raises(CaptureError, match=r"prompts\.json is missing"):
        run.prompts()
    for text in ("{", "[1]", '[{"id": "p1"}]'):
        (run.root / "prompts.json").write_text(text)
        with pytest.raises(CannotJudge, match=r"prompts\.json is damaged"):
            run.prompts()
    (run.root / "run.json").write_text("{")
    with pytest.raises(CannotJudge, match=r"run\.json is damaged"):
        run.run()


def test_prompts_survive_their_file(tmp_path: Path) -> None:
    """Ids, text in any script, no text."""
    run = RunDir.create(tmp_path / "run", overwrite=False)
    prompts = (Prompt("p1", (1, 2), "你好\n", "ab"), Prompt("p2", (), None, "cd"))
    run.write_prompts(prompts)
    assert run.prompts() == prompts
    assert json.loads((run.root / "prompts.json").read_text(encoding="utf-8"))[0]["text"] == "你好\n"


def test_every_file_has_its_place(tmp_path: Path) -> None:
    """design.md's layout, repeats beside the first."""
    run = RunDir(tmp_path)
    places = [run.capture("b", "p"), run.capture("b", "p", 2), run.judged("b", "p"), run.log("b")]
    assert [str(p.relative_to(tmp_path)) for p in places] == [
        "captures/b/p", "captures/b/p@2", "judged/b/p.jsonl", "logs/b.log",
    ]  # fmt: skip
