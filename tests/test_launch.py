from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from gptq_diff import launch
from gptq_diff.launch import Load, Outcome, run_load
from tests.fake_worker import FakeWorker, alive, ended


def outcomes(load: Load) -> dict[str, Outcome]:
    return {outcome.backend: outcome for outcome in run_load(load, lambda backend, event: None)}


def reason(outcome: Outcome) -> str:
    assert outcome.failure is not None
    assert "\n" not in outcome.failure
    return outcome.failure


def test_a_worker_that_ends_well_has_finished_everything(tmp_path: Path) -> None:
    """Every job of every backend counts as finished, with versions and seconds, from one process."""
    fake = FakeWorker(tmp_path)
    heard: list[tuple[str, str]] = []
    found = run_load(
        fake.load("a", "b", prompts=("short", "long")), lambda backend, event: heard.append((backend, event["event"]))
    )
    assert [(o.backend, o.failure, o.finished) for o in found] == [
        ("a", None, ["short", "long"]),
        ("b", None, ["short", "long"]),
    ]
    assert all(o.versions == {"fake": "1.0"} and o.seconds == {"load": 0.5} for o in found)
    assert heard == [
        ("a", "loaded"), ("a", "job"), ("a", "done"), ("a", "job"), ("a", "done"),
        ("b", "job"), ("b", "done"), ("b", "job"), ("b", "done"), ("b", "end"),
    ]  # fmt: skip
    assert len(fake.pids()) == 1


def test_a_worker_killed_in_the_middle_costs_only_its_backend(tmp_path: Path) -> None:
    """SIGKILL (what the kernel's out-of-memory killer sends) fails one backend; the next goes on in a new worker."""
    fake = FakeWorker(
        tmp_path, job="if backend == 'b' and prompt == 'long': grandchild(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    found = outcomes(fake.load("a", "b", "c", prompts=("short", "long")))
    assert reason(found["b"]) == "its worker was killed by SIGKILL (out of memory?)"
    assert found["b"].finished == ["short"]  # what was whole before stays
    assert found["a"].failure is None
    assert found["c"].failure is None
    assert found["a"].finished == found["c"].finished == ["short", "long"]
    assert fake.noted("done") == ["a/short", "a/long", "b/short", "c/short", "c/long"]  # nothing ran twice
    assert len(fake.pids()) == 3
    assert ended(fake.pids())


@pytest.mark.parametrize("how", ["is killed", "hangs", "fails", "ends well"])
def test_nothing_that_a_worker_started_is_left(tmp_path: Path, how: str) -> None:
    """Not even what went into a session of its own, or lost its parent: an engine's ranks hold GPU memory."""
    last = {
        "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
        "hangs": "time.sleep(600)",
        "fails": "sys.exit(1)",
        "ends well": "pass",
    }[how]
    fake = FakeWorker(tmp_path, job=f"grandchild(); grandchild(start_new_session=True); daemon(); {last}")
    found = outcomes(fake.load("a", timeout=3.0))
    assert (found["a"].failure is None) == (how == "ends well")
    assert len(fake.pids()) == 4
    assert not any(map(alive, fake.pids()))  # at once: the next backend needs the memory


def test_what_hides_its_environment_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's ranks overwrite theirs to show a title; they were seen below the worker before it was killed."""
    monkeypatch.setattr(launch, "LOOK_SECONDS", 0.1)
    job = "grandchild(start_new_session=True, env={}); time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)"
    fake = FakeWorker(tmp_path, job=job)
    assert "SIGKILL" in reason(outcomes(fake.load("a"))["a"])
    assert len(fake.pids()) == 2
    assert not any(map(alive, fake.pids()))


def test_a_failed_backend_keeps_the_end_of_its_own_log(tmp_path: Path) -> None:
    """Workers of one load share a log, which goes on being written; what failed shows what its worker said."""
    job = """
print(f'{backend} starts', flush=True)
if backend != 'b': sys.stderr.write(f'{backend}:\\x1b[31m broken\\n\\n'); sys.exit(1)
"""
    found = outcomes(FakeWorker(tmp_path, job=job).load("a", "b", "c"))
    assert found["a"].log_end == ("a starts", "a: broken")
    assert found["b"].log_end == ()
    assert found["c"].log_end == ("b starts", "c starts", "c: broken")  # one worker ran both


def test_a_worker_that_hangs_while_it_loads_is_told_so(tmp_path: Path) -> None:
    """Every backend of the load fails with it."""
    found = outcomes(FakeWorker(tmp_path, start="time.sleep(600)").load("a", "b", timeout=1.5))
    assert {reason(outcome) for outcome in found.values()} == {"timed out after 1.5 s, while it was loading"}


def test_gpu_memory_is_what_the_worker_tells(tmp_path: Path) -> None:
    """Loading counts for every backend of the load, a job for its own; None where nothing is told."""
    fake = FakeWorker(tmp_path)
    fake.python.write_text(
        fake.python.read_text()
        .replace('say("loaded", ', 'say("loaded", gpu=500, ')
        .replace('say("done", ', 'say("done", gpu={"a": 400, "b": 900}[job["backend"]], ')
    )
    found = outcomes(fake.load("a", "b"))
    assert [found[name].memory.gpu for name in "ab"] == [500, 900]
    assert outcomes(FakeWorker(tmp_path / "other").load("a"))["a"].memory.gpu is None


def test_a_failing_worker_tells_its_last_line(tmp_path: Path) -> None:
    """An exception nobody expected is quoted from the log, however much advice stands below it."""
    job = """
if backend == 'a':
    sys.stderr.write("Traceback (most recent call last):\\n  File x\\nRuntimeError: CUDA out of memory. Tried 3 GiB\\n")
    sys.stderr.write("Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\\n\\n")
    sys.exit(1)
"""
    found = outcomes(FakeWorker(tmp_path, job=job).load("a", "b"))
    assert reason(found["a"]) == "its worker ended with status 1: RuntimeError: CUDA out of memory. Tried 3 GiB"
    assert found["b"].finished == ["short"]


def test_an_error_event_is_the_reason(tmp_path: Path) -> None:
    """An expected error is told in its own sentence with its hint, and without what a log may add."""
    job = "if backend == 'a': say('error', message='no such kernel', hint='see the list'); print('x'); sys.exit(3)"
    found = outcomes(FakeWorker(tmp_path, job=job).load("a", "b"))
    assert reason(found["a"]) == "no such kernel; see the list"
    assert found["b"].failure is None


def test_an_error_between_two_backends_belongs_to_the_second(tmp_path: Path) -> None:
    """A kernel that cannot be made fails before its job begins: the backend that had finished is not blamed."""
    fake = FakeWorker(tmp_path)
    fake.python.write_text(
        fake.python.read_text().replace(
            '    say("job", job=index',
            '    if job["backend"] == "b": say("error", message="no kernel b", hint=None); sys.exit(3)\n'
            '    say("job", job=index',
        )
    )
    found = outcomes(fake.load("a", "b", "c"))
    assert found["a"].failure is None
    assert reason(found["b"]) == "no kernel b"
    assert found["c"].finished == ["short"]


def test_a_hanging_worker_is_timed_out(tmp_path: Path) -> None:
    """After --timeout the backend fails, its processes end, even if they ignore SIGTERM, and the others go on."""
    job = """
if backend == 'a':
    grandchild()
    time.sleep(600)
"""
    fake = FakeWorker(tmp_path, job=job)
    found = outcomes(fake.load("a", "b", timeout=2.5))
    assert reason(found["a"]) == "timed out after 2.5 s"
    assert found["b"].finished == ["short"]
    assert ended(fake.pids())


def test_a_worker_that_ignores_sigterm_ends_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time of grace comes SIGKILL."""
    monkeypatch.setattr("gptq_diff.worker_process.GRACE_SECONDS", 0.2)
    fake = FakeWorker(tmp_path, job="signal.signal(signal.SIGTERM, signal.SIG_IGN); grandchild(); time.sleep(600)")
    assert reason(outcomes(fake.load("a", timeout=4))["a"]) == "timed out after 4 s"
    assert len(fake.pids()) == 2
    assert ended(fake.pids())


def test_the_clock_starts_anew_with_each_backend(tmp_path: Path) -> None:
    """--timeout is per backend: three that take most of it each are all in time."""
    found = outcomes(FakeWorker(tmp_path, job="time.sleep(1.5)").load("a", "b", "c", timeout=4))
    assert [o.failure for o in found.values()] == [None, None, None]


def test_an_engine_that_does_not_load_fails_every_backend_once(tmp_path: Path) -> None:
    """Nothing was loaded, so a second try would fail alike: one process, one reason for all."""
    fake = FakeWorker(tmp_path, start="say('error', message='there is no such model', hint=None); sys.exit(3)")
    found = outcomes(fake.load("a", "b"))
    assert reason(found["a"]) == reason(found["b"]) == "there is no such model"
    assert len(fake.pids()) == 1


def test_a_grandchild_does_not_survive_a_good_end(tmp_path: Path) -> None:
    """Engines start helpers of their own; none is left when the worker has ended by itself."""
    fake = FakeWorker(tmp_path, job="grandchild()")
    assert outcomes(fake.load("a"))["a"].failure is None
    assert len(fake.pids()) == 2
    assert ended(fake.pids())


def test_a_crash_on_the_way_out_takes_nothing_back(tmp_path: Path) -> None:
    """All captures are whole before the interpreter is torn down, and that is known to crash with CUDA."""
    found = outcomes(FakeWorker(tmp_path, end="os.kill(os.getpid(), signal.SIGSEGV)").load("a"))
    assert found["a"].failure is None
    assert found["a"].finished == ["short"]


SILENT = "global say\nreal = say\nsay = lambda event, **more: None if event == 'end' else real(event, **more)"


@pytest.mark.parametrize(("which", "start"), [("TEARDOWN_SECONDS", "pass"), ("LINGER_SECONDS", SILENT)])
def test_a_worker_that_hangs_on_the_way_out_is_ended_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, start: str
) -> None:
    """Its work is done: it is given a moment to end by itself, the shorter one once it has said that it ends; an engine
    that does not let itself be interrupted then is killed."""
    monkeypatch.setattr(launch, which, 0.3)
    fake = FakeWorker(tmp_path, start=start, end="signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)")
    started = time.monotonic()
    found = outcomes(fake.load("a", timeout=60.0))
    assert (found["a"].failure, found["a"].finished) == (None, ["short"])
    assert ended(fake.pids())
    assert time.monotonic() - started < 20, "it waited for the other limit"


def test_an_early_end_with_status_0_is_a_failure(tmp_path: Path) -> None:
    """An engine that calls sys.exit has not done the work."""
    found = outcomes(FakeWorker(tmp_path, job="print('bye'); sys.exit(0)").load("a"))
    assert reason(found["a"]) == "its worker ended before its work: bye"
    assert found["a"].finished == []


def test_half_a_line_is_no_event(tmp_path: Path) -> None:
    """A worker that dies while it says `done` has not finished; lines that are no event are passed over."""
    job = """
events.write('no json\\n[1]\\n{"no": "event"}\\n')
events.write('{"event": "done", "job"')
events.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    found = outcomes(FakeWorker(tmp_path, job=job).load("a"))
    assert found["a"].finished == []
    assert "SIGKILL" in reason(found["a"])


def test_a_segmentation_fault_is_named_with_what_the_log_says(tmp_path: Path) -> None:
    """SIGSEGV and SIGABRT often leave a line that says why."""
    job = "print('free(): invalid pointer', flush=True); os.kill(os.getpid(), signal.SIGABRT)"
    found = outcomes(FakeWorker(tmp_path, job=job).load("a"))
    assert reason(found["a"]) == "its worker was killed by SIGABRT; its log ends with: free(): invalid pointer"


def test_a_signal_without_a_name_is_given_by_its_number(tmp_path: Path) -> None:
    """Real-time signals have none in Python."""
    found = outcomes(FakeWorker(tmp_path, job="os.kill(os.getpid(), 40)").load("a"))
    assert reason(found["a"]) == "its worker was killed by signal 40"


def test_a_silent_worker_is_not_given_the_words_of_the_one_before(tmp_path: Path) -> None:
    """Workers of one load share a log; a reason quotes only what its own worker wrote."""
    job = "if backend == 'a': print('words of a')\nsys.exit(1)"
    found = outcomes(FakeWorker(tmp_path, job=job).load("a", "b"))
    assert reason(found["a"]) == "its worker ended with status 1: words of a"
    assert reason(found["b"]) == "its worker ended with status 1: nothing in its log"


@pytest.mark.parametrize("kind", ["missing", "not executable", "a directory", "no program"])
def test_an_interpreter_that_cannot_be_started_is_a_reason(tmp_path: Path, kind: str) -> None:
    """A wrong `@PYTHON` skips the backend and names the interpreter."""
    fake = FakeWorker(tmp_path)
    if kind == "missing":
        fake.python.unlink()
    elif kind == "not executable":
        fake.python.chmod(0o644)
    elif kind == "a directory":
        fake.python.unlink()
        fake.python.mkdir()
    else:
        fake.python.write_text("this is text")
    said = reason(outcomes(fake.load("a"))["a"])
    assert said.startswith(f"the interpreter {fake.python} cannot be started: ")


def test_a_failing_backend_is_told_to_the_listener(tmp_path: Path) -> None:
    """The live display learns of a failure when it happens."""
    heard: list[tuple[str, dict[str, Any]]] = []
    run_load(FakeWorker(tmp_path, job="sys.exit(7)").load("a"), lambda backend, event: heard.append((backend, event)))
    assert ("a", {"event": "failed", "reason": "its worker ended with status 7: nothing in its log"}) in heard


def test_memory_is_sampled_for_the_backend_that_runs(tmp_path: Path) -> None:
    """The backend that takes 200 MB shows them, the one before it does not."""
    job = "global held\nheld = bytearray(200_000_000 if backend == 'b' else 1)\ntime.sleep(0.5)"
    found = outcomes(FakeWorker(tmp_path, job=job).load("a", "b"))
    a, b = found["a"].memory.private, found["b"].memory.private
    assert a is not None and b is not None
    assert a < 150_000_000 < 200_000_000 < b < 400_000_000
