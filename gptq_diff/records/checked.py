"""What a check says: expectations, what happened, and what became of each case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Expectation:
    """What a case expects of a backend with a prompt; None for what is not looked at.

    backend, prompt: None for every one. status: as in report.json. layer: the first bad one, None also where there is
    none. cause: the best finding there. line: in the case file, 0 where nobody wrote it.
    """

    backend: str | None = None
    prompt: str | None = None
    status: str | None = None
    layer: str | None = None
    cause: str | None = None
    collapsed: bool | None = None
    line: int = 0

    @property
    def said(self) -> str:
        """In a few words, without whom it is about."""
        words = [self.status or "", f"at {self.layer}" if self.layer else "", self.cause or ""]
        if self.collapsed is not None:
            words.append("collapsed" if self.collapsed else "not collapsed")
        return ", ".join(word for word in words if word)


@dataclass(frozen=True)
class Seen:
    """What happened with one backend and prompt, in the words of an expectation.

    layer, cause: None where nothing broke, or no cause is known. compared: linears judged. summary: in a sentence.
    """

    backend: str
    prompt: str
    status: str
    layer: str | None
    cause: str | None
    collapsed: bool
    compared: int
    summary: str


@dataclass(frozen=True)
class Checked:
    """One expectation held against one backend and prompt.

    differences: "status: expected X, happened Y", a phrase each; empty where it held.
    stated: False for what no expectation names, which has to agree.
    """

    backend: str
    prompt: str
    expected: Expectation
    seen: Seen | None
    differences: tuple[str, ...]
    stated: bool = True

    @property
    def held(self) -> bool:
        """Whether what happened is what was expected."""
        return not self.differences


@dataclass(frozen=True)
class LinearError:
    """The local error of one linear over a run, for a baseline: relative l2, and what its kernel's rounding explains.

    Of the call in which the first is largest beside the second; calls without a size are left out. share: of the
    squared error the share of its largest element; 1 where it is not known.
    """

    error: float
    floor: float
    share: float = 1.0

    @property
    def ratio(self) -> float:
        """Error over floor; lower is better."""
        return self.error / self.floor


@dataclass(frozen=True)
class Figures:
    """What a baseline keeps of one backend and prompt: every linear's local error, the path and the versions."""

    backend: str
    prompt: str
    status: str
    kernel: Mapping[str, str]
    versions: Mapping[str, str]
    linears: Mapping[str, LinearError]


ALL_LINEARS = "all linears"
"""The layer of a regression that all of them show together."""


@dataclass(frozen=True)
class Regression:
    """A local error that grew beyond the noise.

    layer: of one linear, or ALL_LINEARS. before, now, allowed: its relative l2 error in the baseline, in this run,
    and the largest that noise explains; of all linears the geometric mean of their growth, where 1 is none.
    """

    backend: str
    prompt: str
    layer: str
    before: float
    now: float
    allowed: float


HELD, FAILED, SKIPPED, ERROR = "held", "failed", "skipped", "error"
"""What becomes of a case: everything as expected, something not, not run, could not be judged."""


@dataclass(frozen=True)
class CaseOutcome:
    """What became of one case.

    state: HELD, FAILED, SKIPPED or ERROR. reason: of the last two, in a sentence.
    checks: expectations with what happened. skipped: backend -> why it was not run though the case names it.
    regressions: against the baseline; baseline: what it is, in words, where it is not compared with one.
    key: what the outcome depends on (case, versions, checkpoint); one of the same key need not be run again.
    usage: whether an ERROR is a mistake in the case or in what was asked.
    fingerprint: of the checkpoint. versions: of each backend. planted: the fault, in words; "" for none.
    run: the run directory. reused: taken from an interrupted check.
    """

    name: str
    state: str
    reason: str = ""
    checks: tuple[Checked, ...] = ()
    seen: tuple[Seen, ...] = ()
    figures: tuple[Figures, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    regressions: tuple[Regression, ...] = ()
    baseline: str = ""
    fingerprint: str = ""
    versions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    planted: str = ""
    seconds: float = 0.0
    run: str = ""
    key: str = ""
    reused: bool = False
    usage: bool = False

    @property
    def bad(self) -> bool:
        """Whether it is neither as expected nor left out."""
        return self.state in (FAILED, ERROR)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> CaseOutcome:
        """From what `to_json` gave; TypeError or KeyError for anything else."""
        return cls(**{
            **raw, "checks": tuple(_checked(c) for c in raw["checks"]), "seen": tuple(Seen(**s) for s in raw["seen"]),
            "figures": tuple(_figures(f) for f in raw["figures"]),
            "regressions": tuple(Regression(**r) for r in raw["regressions"]),
        })  # fmt: skip


def _checked(raw: dict[str, Any]) -> Checked:
    seen = None if raw["seen"] is None else Seen(**raw["seen"])
    expected = Expectation(**raw["expected"])
    return Checked(**{**raw, "expected": expected, "seen": seen, "differences": tuple(raw["differences"])})


def _figures(raw: dict[str, Any]) -> Figures:
    linears = {name: LinearError(**one) for name, one in raw["linears"].items()}
    return Figures(**{**raw, "linears": linears})


@dataclass(frozen=True)
class SelfTest:
    """The fault that was planted to see whether the guard sees.

    case: the case that plants it. outcome: what became of it; None where it was not run (--no-self-test).
    sees: whether it was found where it is, by its cause, and a healthy verdict would have been refused.
    reason: why not, or why it was not run.
    """

    case: str
    outcome: CaseOutcome | None
    sees: bool
    reason: str = ""


@dataclass(frozen=True)
class CheckReport:
    """check.json.

    cases: in the order they were asked for. not_begun: left out after one that did not hold (--no-keep-going).
    baseline: the file that local errors were compared with; "" for none. seed: drew the self-test.
    """

    schema_version: int
    gptq_diff: str
    created: str
    environment: Mapping[str, str | None]
    cases: tuple[CaseOutcome, ...]
    self_test: SelfTest
    seed: int
    seconds: float
    baseline: str = ""
    not_begun: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """2 a case is wrong itself, 1 an expectation did not hold, 3 not judged or nothing compared, 0 all held."""
        if any(c.usage for c in self.cases):
            return 2
        if any(c.state == FAILED for c in self.cases):
            return 1
        blind = self.self_test.outcome is not None and not self.self_test.sees
        if blind or any(c.state == ERROR for c in self.cases) or not any(c.state == HELD for c in self.cases):
            return 3
        return 0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "exit_code": self.exit_code}
