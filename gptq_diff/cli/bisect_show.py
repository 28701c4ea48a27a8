"""What a bisection found: for a person as a sentence and a table, for a program as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from gptq_diff.text import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from gptq_diff.bisection.record import Question
    from gptq_diff.bisection.run import Bisected


def show(screen: Console, done: Bisected) -> None:
    """Every release that was tried, in the order in which they follow each other; then what was found."""
    tried = {trial.version: trial for trial in done.trials}
    table = Table("release", "verdict", "seconds", "what was seen, or why nothing was", box=None, pad_edge=False)
    for version in done.versions:
        if version in tried:
            trial = tried[version]
            said = one_line(trial.verdict.said, 300)
            table.add_row(version, trial.verdict.kind, f"{trial.seconds:.0f}", Text(said))
    screen.print(table)
    found = sentence(done)
    if found is not None:
        screen.print(Text(found), soft_wrap=True)


def sentence(done: Bisected) -> str | None:
    """What was found, in a sentence; None where nothing was."""
    found = done.found
    if found.last_good is None or found.first_bad is None:
        return None
    between = ""
    if found.between:
        names = ", ".join(found.between)
        newer = found.last_good if done.repair else found.first_bad
        between = f"; not judged in between: {names}, so the change came with one of them or with {newer}"
    if done.repair:
        return f"last bad {found.first_bad}, first good {found.last_good}{between}"
    return f"last good {found.last_good}, first bad {found.first_bad}{between}"


def to_json(done: Bisected, question: Question) -> dict[str, Any]:
    """Everything, for --json."""
    trials = [
        {"version": t.version, "verdict": t.verdict.kind, "said": t.verdict.said, "seconds": t.seconds}
        for t in done.trials
    ]
    found = {**asdict(done.found), "between": list(done.found.between)}
    path = {"versions": list(done.versions), "repair": done.repair}
    return {"schema_version": 1, **asdict(question), **path, "found": found, "trials": trials}
