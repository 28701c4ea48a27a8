"""The stage after judging: why the bad layers of a run are bad. Works on a finished run, anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.judge_run import Key
from gptq_diff.compare.results import BAD_KINDS
from gptq_diff.diagnose.captured import Diagnosis
from gptq_diff.diagnosed_file import write_findings
from gptq_diff.judged_file import read_judged
from gptq_diff.session.asked import RunRecord
from gptq_diff.session.behind import GoOn, unhindered
from gptq_diff.session.finished import open_finished

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint


def diagnose_run(
    run: RunDir, record: RunRecord, keys: Sequence[Key], judge: Checkpoint, loaded: Checkpoint,
    go_on: GoOn = unhindered,
) -> int:  # fmt: skip
    """Explain those captures with a bad linear whose tensors are there, and store the findings; returns how many.

    Of a backend all captures are to be among the keys: they are held against each other. go_on: called before each.
    """
    captures = open_finished(run, record, keys)
    done = 0
    for backend in dict.fromkeys(backend for backend, _ in captures):
        of_backend = {prompt: captured for (name, prompt), captured in captures.items() if name == backend}
        judgements = {prompt: read_judged(run.judged(backend, prompt)) for prompt in of_backend}
        diagnosis = Diagnosis(of_backend, judgements, judge, loaded)
        for prompt in of_backend:
            go_on()
            if not any(j.kind in BAD_KINDS for j in judgements[prompt]):
                run.findings(backend, prompt).unlink(missing_ok=True)
                continue
            findings = diagnosis.of_prompt(prompt)
            if findings:
                write_findings(run.findings(backend, prompt), findings)
                done += 1
    for captured in captures.values():
        captured.reader.close()
    return done
