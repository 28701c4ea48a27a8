"""The main job without worker processes: their own code in this process, a hundred times faster and counted as covered.

What only a process of its own can show is proved in tests/test_launch.py and by the few tests that start the program.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.errors import GptqDiffError
from gptq_diff.jobs import AnyJob, Events
from gptq_diff.launch import FollowUp, Listener, Load, Outcome
from gptq_diff.records import Report, Result
from gptq_diff.session.asked import Asked
from gptq_diff.session.main_job import run_job
from gptq_diff.session.prepare import PromptSource, prepare
from gptq_diff.worker import work
from gptq_diff.worker_process import Early

FIRST, SECOND = (510, 3, 4, 5), (510, *range(5, 60))
"""Token ids of a prompt of 4 tokens and one of 56, on both sides of vLLM's boundary of 50 rows; 510 is <|im_start|>."""


class Relayed(Events):
    """Events that go straight to their reader."""

    def __init__(self, hear: Callable[[dict[str, Any]], None]) -> None:
        self._hear = hear

    def say(self, event: str, **values: object) -> None:
        self._hear({"event": event, **values})


def run_here(
    load: Load, listen: Listener, follow_up: FollowUp | None = None, early: Early | None = None
) -> list[Outcome]:
    """What gptq_diff.launch.run_load does, in this process."""
    assert early is None, "nothing is started ahead without a GPU"
    jobs = list(load.spec.jobs)
    outcomes = {job.backend: Outcome(job.backend) for job in jobs}
    done: list[int] = []

    def further(number: int) -> tuple[AnyJob, ...]:
        assert follow_up is not None
        asked = tuple(follow_up(list(outcomes.values())))
        jobs.extend(asked)
        return asked

    def hear(event: dict[str, Any]) -> None:
        job = jobs[event.get("job", len(done) if len(done) < len(jobs) else -1)]
        if event["event"] in ("done", "linear-done"):
            outcome = outcomes[job.backend]
            (outcome.finished if event["job"] < len(load.spec.jobs) else outcome.followed).append(job.key)
            if event.get("refused"):
                outcome.refused[job.key] = event["refused"]
            done.append(event["job"])
        elif event["event"] == "loaded":
            for outcome in outcomes.values():
                outcome.versions, outcome.seconds["load"] = event["versions"], event["seconds"]
        listen(job.backend, event)

    try:
        work(load.spec, Relayed(hear), None if follow_up is None else further)
    except GptqDiffError as error:
        for name in dict.fromkeys(job.backend for job in jobs[len(done) :]):
            outcomes[name].failure = str(error)
            listen(name, {"event": "failed", "reason": str(error)})
    return list(outcomes.values())


class Silent:
    """A watcher that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.judged: list[tuple[int, int]] = []

    def worker(self, backend: str, event: dict[str, Any]) -> None:
        self.events.append((backend, event))

    def judging(self, done: int, total: int) -> None:
        self.judged.append((done, total))


def asked(
    model: Path, backends: str | None = "hf-fp16", prompts: Sequence[Sequence[int]] = (FIRST,),
    reference_model: Path | None = None, reference: str = "hf-fp32", **settings: Any,
) -> Asked:  # fmt: skip
    """Token ids through `prepare`, as the command line would ask; two tokens a prompt."""
    entries = [{"id": f"p{n}", "token_ids": list(ids)} for n, ids in enumerate(prompts, 1)]
    stdin = io.BytesIO(json.dumps(entries).encode())
    settings = {"max_new_tokens": 2, **settings}
    source = PromptSource("-", None, chat_template=True)
    return prepare(model, reference_model, source, stdin, backends, reference, trust_remote_code=False, **settings)


def run(wanted: Asked, out: Path, watcher: Silent | None = None) -> Report:
    """The main job in this process (`here` must be in force)."""
    torch.set_num_threads(1)
    claimed = RunDir.create(out, overwrite=False)
    try:
        return run_job(wanted, claimed, watcher or Silent())
    finally:
        claimed.release()


def result(report: Report, backend: str, prompt: str = "p1") -> Result:
    """One result of a report."""
    return next(r for r in report.results if (r.backend, r.prompt) == (backend, prompt))
