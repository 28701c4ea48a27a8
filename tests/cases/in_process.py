"""Workers without processes: the same jobs by the same hands, where starting Python and torch would take longer."""

from __future__ import annotations

from pathlib import Path

import torch

from gptq_diff import worker
from gptq_diff.errors import GptqDiffError
from gptq_diff.jobs import EventReader, Events
from gptq_diff.launch import Outcome


def run_load(load, listen, follow_up=None):
    """`launch.run_load` in this process; an expected error fails all backends of the load that have not finished."""
    spec = load.spec
    place = Path(spec.jobs[0].out).parent
    place.mkdir(parents=True, exist_ok=True)
    file = place / "events.jsonl"
    outcomes = {job.backend: Outcome(job.backend) for job in spec.jobs}
    threads = torch.get_num_threads()
    failure = None
    try:
        worker.work(spec, Events(file))
    except GptqDiffError as e:
        failure = str(e)
    finally:
        torch.set_num_threads(threads)
    for event in EventReader(file).new():
        listen(spec.jobs[0].backend, event)
        if event["event"] == "done":
            job = spec.jobs[event["job"]]
            outcomes[job.backend].finished.append(job.key)
            outcomes[job.backend].versions |= event["versions"]
    file.unlink()
    for name, outcome in outcomes.items():
        if failure is not None and len(outcome.finished) < sum(job.backend == name for job in spec.jobs):
            outcome.failure = failure
    return list(outcomes.values())
