"""The first worker: on its way before anything heavy is imported, and ended where its load is never made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.errors import UsageError
from gptq_diff.session import loads
from gptq_diff.worker_process import Load
from tests.session.in_process import asked
from tests.test_imports import HEAVY

PREPARED = """
import io, json, sys
from pathlib import Path
from gptq_diff.errors import UsageError
from gptq_diff.session.prepare import PromptSource, prepare
import gptq_diff.cli.main_job as command
from gptq_diff.session import loads

class Started:
    def __init__(self, load):
        print(json.dumps([load.spec.jobs[0].backend, load.spec.engine, sorted({heavy!r} & set(sys.modules))]))
    def end(self):
        raise UsageError("enough seen")

loads.Early = Started
asked = prepare(
    Path({model!r}), None, PromptSource("-", None, chat_template=True), io.BytesIO({prompts!r}), {backends!r},
    "hf-fp32", trust_remote_code=False,
)
try:
    command.watched(asked, Path({out!r}), overwrite=False, quiet=True)
except UsageError:
    pass
"""


class Noted:
    """In place of a worker's process."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.ends = 0

    def end(self) -> None:
        self.ends += 1


def test_nothing_heavy_is_imported_before_it_starts(small_model: Path, tmp_path: Path) -> None:
    """torch takes seconds; what the user typed is checked, the run directory claimed and the worker started before."""
    code = PREPARED.format(
        heavy=HEAVY - {"tokenizers"}, model=str(small_model), prompts=b'[{"id": "p1", "token_ids": [510, 3]}]',
        backends="hf-fp16", out=str(tmp_path / "run"),
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == ["hf-fp32", "transformers", []]


@pytest.mark.parametrize("wrong", [["no-such-backend"], ["hf-fp32", "--model", "no/such/directory"]], ids=str)
def test_bad_input_is_refused_without_torch(small_model: Path, tmp_path: Path, wrong: list[str]) -> None:
    """Exit 2 in a fraction of a second, and nothing was started or written."""
    arguments = ["run", "--model", str(small_model), "--prompt-file", "-", "--out", str(tmp_path / "run"), "--backends"]
    code = (
        f"import sys; sys.argv = ['gptq-diff', *{[*arguments, *wrong]!r}]\n"
        "from gptq_diff.cli.app import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input="hello", capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert not (tmp_path / "run").exists()


def test_it_gets_what_its_load_gets(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same interpreter, log, environment and engine; it is ended with the context."""
    monkeypatch.setattr(loads, "Early", Noted)
    wanted, run = asked(small_model, "sim-gptq,hf-fp16"), RunDir(tmp_path / "run")
    with loads.first_started(wanted, run) as first:
        assert isinstance(first, Noted)
        assert first.load == loads.load_of(wanted, run, first.load.staged, loads.loads_of(wanted)[0], {})
        assert [job.backend for job in first.load.spec.jobs] == ["hf-fp32"]
        assert first.ends == 0
    assert first.ends == 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_is_refused_ends_it(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """As by a disk without room, which is asked once the worker is on its way; its log stays with a run alone."""
    monkeypatch.setattr(loads, "Early", Noted)
    made: list[Noted] = []
    run = RunDir.create(tmp_path / "run", overwrite=False)
    with pytest.raises(UsageError), loads.first_started(asked(small_model), run) as first:
        made.append(first)  # type: ignore[arg-type]
        log = made[0].load.log
        log.parent.mkdir()
        log.touch()
        if begun:
            run.write_run({})
        raise UsageError("no room", "make some")
    assert [one.ends for one in made] == [1]
    assert log.exists() is begun
    run.release()
    if not begun:
        RunDir.create(tmp_path / "run", overwrite=False).release()
