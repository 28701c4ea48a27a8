"""Further jobs of a load: handed out when its worker waits, and what goes wrong in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gptq_diff import launch
from gptq_diff.jobs import LinearCall, LinearJob
from gptq_diff.launch import Load, Outcome, run_load
from tests.fake_worker import FakeWorker, alive, ended

ROUND = (("a", "one"), ("b", "one"))


def job(backend: str, layer: str) -> LinearJob:
    return LinearJob(backend, "fake", layer, "/x", (LinearCall("c", (0,)),), f"/out/{backend}/{layer}")


class Plan:
    """Hands out those rounds, one after another, and notes what it was told. think: run at every question."""

    def __init__(self, *rounds: Sequence[tuple[str, str]], think: Callable[[], object] = lambda: None) -> None:
        self.rounds = list(rounds)
        self.told: list[list[tuple[str, str | None, list[str], list[str]]]] = []
        self.think = think

    def __call__(self, outcomes: Sequence[Outcome]) -> list[LinearJob]:
        self.told.append([(o.backend, o.failure, list(o.finished), list(o.followed)) for o in outcomes])
        self.think()
        return [job(*pair) for pair in self.rounds.pop(0)] if self.rounds else []


def run(load: Load, plan: Plan) -> dict[str, Outcome]:
    return {o.backend: o for o in run_load(load, lambda backend, event: None, plan)}


def test_rounds_follow_each_other_in_one_worker(tmp_path: Any) -> None:
    """Each is planned with what finished before it; an empty one ends the worker; captures and they are told apart."""
    fake = FakeWorker(tmp_path)
    plan = Plan([("a", "one"), ("b", "one")], [("b", "two")])
    found = run(fake.load("a", "b"), plan)
    assert plan.told == [
        [("a", None, ["short"], []), ("b", None, ["short"], [])],
        [("a", None, ["short"], ["/out/a/one"]), ("b", None, ["short"], ["/out/b/one"])],
        [("a", None, ["short"], ["/out/a/one"]), ("b", None, ["short"], ["/out/b/one", "/out/b/two"])],
    ]
    assert fake.noted("further") == ["a/one", "b/one", "b/two"]
    assert all((o.failure, o.further_failure, o.refused) == (None, None, {}) for o in found.values())
    assert len(fake.pids()) == 1


def test_without_a_plan_nobody_waits(tmp_path: Any) -> None:
    """As before there were any."""
    fake = FakeWorker(tmp_path, further="note('waited', 1)")
    run_load(fake.load("a"), lambda backend, event: None)
    assert fake.noted("waited") == []


def test_a_worker_killed_in_a_further_job_costs_that_backend_its_further_jobs(tmp_path: Any) -> None:
    """Captures stay finished, the reason is told, the other backend's jobs go on in a new worker."""
    fake = FakeWorker(tmp_path, further="if backend == 'a': grandchild(); os.kill(os.getpid(), signal.SIGKILL)")
    plan = Plan([("a", "one"), ("a", "two"), ("b", "one")], [("a", "three"), ("b", "two")])
    heard: list[tuple[str, str]] = []
    found = {
        o.backend: o
        for o in run_load(fake.load("a", "b"), lambda backend, event: heard.append((backend, event["event"])), plan)
    }
    assert (found["a"].failure, found["a"].finished, found["a"].followed) == (None, ["short"], [])
    assert found["a"].further_failure == "its worker was killed by SIGKILL (out of memory?)"
    assert (found["b"].further_failure, found["b"].followed) == (None, ["/out/b/one", "/out/b/two"])
    assert fake.noted("further") == ["a/one", "b/one", "b/two"]
    assert fake.noted("done") == ["a/short", "b/short"]
    assert ("a", "further-failed") in heard
    assert "failed" not in [event for _, event in heard]
    assert ended(fake.pids())


def test_a_worker_that_hangs_in_a_further_job_is_timed_out(tmp_path: Any) -> None:
    """Its captures are not: the load was in time."""
    fake = FakeWorker(tmp_path, further="if backend == 'a': time.sleep(600)")
    found = run(fake.load("a", "b", timeout=2.0), Plan([("a", "one"), ("b", "one")]))
    assert (found["a"].failure, found["a"].finished) == (None, ["short"])
    assert found["a"].further_failure == "timed out after 2 s"
    assert found["b"].followed == ["/out/b/one"]
    assert ended(fake.pids())


def test_no_clock_runs_while_the_parent_thinks(tmp_path: Any) -> None:
    """Thinking takes longer than a backend may."""
    fake = FakeWorker(tmp_path)
    found = run(fake.load("a", timeout=1.5), Plan([("a", "one")], [("a", "two")], think=lambda: time.sleep(2)))
    assert (found["a"].further_failure, found["a"].followed) == (None, ["/out/a/one", "/out/a/two"])
    assert len(fake.pids()) == 1


def test_a_worker_that_dies_while_the_parent_thinks_is_noticed(tmp_path: Any) -> None:
    """What was planned for it goes to the first backend's account, and on in a new worker for the others."""
    first = "backend is None and len(open(notes + '/pids').readlines()) == 1"
    fake = FakeWorker(tmp_path, further=f"if {first}: time.sleep(0.5); sys.exit(4)")
    found = run(fake.load("a", "b"), Plan([("a", "one"), ("b", "one")], think=lambda: time.sleep(1)))
    assert found["a"].further_failure == "its worker ended with status 4: nothing in its log"
    assert found["b"].followed == ["/out/b/one"]
    assert found["a"].failure is None and found["b"].failure is None


def test_a_backend_that_failed_has_no_further_jobs_and_the_others_have(tmp_path: Any) -> None:
    """Whoever asks for some gets none; where the last backend killed its worker a new one is started for them."""
    fake = FakeWorker(tmp_path, job="if backend == 'b': sys.exit(7)")
    plan = Plan([("b", "one"), ("a", "one")])
    found = run(fake.load("a", "b"), plan)
    assert found["b"].failure == "its worker ended with status 7: nothing in its log"
    assert fake.noted("further") == ["a/one"]
    assert len(fake.pids()) == 2
    assert plan.told[0][0] == ("a", None, ["short"], [])


def test_an_engine_that_does_not_load_is_not_asked_about(tmp_path: Any) -> None:
    """All its backends have failed: there is nothing to plan."""
    plan = Plan([("a", "one")])
    assert run(FakeWorker(tmp_path, start="sys.exit(5)").load("a"), plan)["a"].failure is not None
    assert plan.told == []


def test_what_an_engine_refuses_costs_one_job(tmp_path: Any) -> None:
    """With the reason, under the job's key; the worker goes on."""
    fake = FakeWorker(tmp_path, further="return 'it cannot' if name == 'one' else None")
    outcome = run(fake.load("a"), Plan([("a", "one"), ("a", "two")]))["a"]
    assert outcome.refused == {"/out/a/one": "it cannot"}
    assert outcome.followed == ["/out/a/one", "/out/a/two"]
    assert outcome.further_failure is None
    assert len(fake.pids()) == 1


def test_a_plan_that_fails_ends_the_worker(tmp_path: Any) -> None:
    """A damaged capture, say: the error is the caller's, and nothing is left running."""

    def fail() -> None:
        raise ValueError("damaged")

    fake = FakeWorker(tmp_path, further="grandchild() if backend is None else None")
    with pytest.raises(ValueError, match="damaged"):
        run(fake.load("a"), Plan(think=fail))
    assert not any(map(alive, fake.pids()))


def test_the_time_to_end_begins_after_the_last_round(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose captures are done is not taken for one that hangs on its way out."""
    monkeypatch.setattr(launch, "LINGER_SECONDS", 0.5)
    monkeypatch.setattr(launch, "TEARDOWN_SECONDS", 0.5)
    fake = FakeWorker(tmp_path, further="time.sleep(1) if backend else None", end="time.sleep(600)")
    found = run(fake.load("a"), Plan([("a", "one")], think=lambda: time.sleep(0.7)))
    assert (found["a"].further_failure, found["a"].followed) == (None, ["/out/a/one"])
    assert len(fake.pids()) == 1
    assert ended(fake.pids())


def test_memory_of_further_jobs_is_not_the_backends(tmp_path: Any) -> None:
    """peak_private_bytes speaks of what running the model takes."""
    fake = FakeWorker(tmp_path, further="global held\nif backend: held = bytearray(300_000_000); time.sleep(0.3)")
    found = run(fake.load("a"), Plan([("a", "one")]))["a"]
    assert found.followed
    assert found.memory.private is not None and found.memory.private < 200_000_000


def test_further_jobs_may_be_all_that_is_asked_for(tmp_path: Any) -> None:
    """A load of experiments on a finished run: its first jobs are of that kind too."""
    from dataclasses import replace

    fake = FakeWorker(tmp_path)
    load = fake.load("a")
    load = replace(load, spec=replace(load.spec, jobs=(job("a", "one"),)))
    found = run(load, Plan([("a", "two")]))["a"]
    assert (found.finished, found.followed) == (["/out/a/one"], ["/out/a/two"])
    assert found.failure is None
