"""What the page says in words and tables, as records that its template writes down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gptq_diff.records import Finding, Report, Result, SkippedLayer, Workaround
from gptq_diff.report.html.data import capture_key, told_findings

SIGNS = {"agree": "✓", "incomplete": "?", "nondeterministic": "≈"}
"""Beside the colour of a status, for those who cannot tell colours apart; any other is ✗."""
MANY = 12
"""Prompts, above which those at which something fails come first."""


@dataclass(frozen=True)
class Cell:
    """One backend with one prompt; key is "" where it has no pictures, note "" where there is nothing to add."""

    status: str
    sign: str
    note: str
    key: str
    name: str


@dataclass(frozen=True)
class Matrix:
    """rows x columns of cells, None where nothing ran. One side is backends and the other prompts, the longer down.

    sorted: failing prompts come first.
    """

    corner: str
    sorted: bool
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


@dataclass(frozen=True)
class Written:
    """What one backend wrote; ids with whether each is the reference's at that place; text None without tokenizer."""

    backend: str
    status: str
    sign: str
    ids: tuple[tuple[int, bool], ...]
    text: str | None
    reference: bool
    collapsed: bool


@dataclass(frozen=True)
class Shared:
    """Something said of several results: who they are, and what."""

    who: str
    finding: Finding | None = None
    workarounds: tuple[Workaround, ...] = ()
    reason: str = ""
    layers: tuple[str, ...] = ()


def sign(status: str) -> str:
    """A character that stands beside the status."""
    return SIGNS.get(status, "✗")


def matrix(report: Report, pictured: Sequence[Result]) -> Matrix:
    """What became of every backend with every prompt."""
    has_pictures = {(r.backend, r.prompt) for r in pictured}
    found = {(r.backend, r.prompt): r for r in report.results}
    backends = list(dict.fromkeys(r.backend for r in report.results))
    asked = {r.prompt for r in report.results}
    prompts = [p for p in report.prompts if p.id in asked]
    tokens = {p.id: f"{p.id} ({p.tokens} tokens)" for p in prompts}
    if len(prompts) > MANY:
        prompts.sort(key=lambda p: all(found[b, p.id].status == "agree" for b in backends if (b, p.id) in found))

    def cell(backend: str, prompt: str) -> Cell | None:
        result = found.get((backend, prompt))
        if result is None:
            return None
        key = capture_key(backend, prompt) if (backend, prompt) in has_pictures else ""
        return Cell(result.status, sign(result.status), _where(result), key, f"{backend}, prompt {prompt}")

    names = {b: f"{b} (reference)" if b == report.reference else b for b in backends}
    if len(prompts) > len(backends):
        rows = tuple((tokens[p.id], tuple(cell(b, p.id) for b in backends)) for p in prompts)
        return Matrix("prompt", len(prompts) > MANY, tuple(names[b] for b in backends), rows)
    rows = tuple((names[b], tuple(cell(b, p.id) for p in prompts)) for b in backends)
    return Matrix("backend", len(prompts) > MANY, tuple(tokens[p.id] for p in prompts), rows)


def counts(report: Report) -> str:
    """`3 overflow, 7 agree`: how many results there are of each status, what fails first."""
    found: dict[str, int] = {}
    for result in report.results:
        found[result.status] = found.get(result.status, 0) + 1
    ordered = sorted(found.items(), key=lambda item: item[0] == "agree")
    return ", ".join(f"{n} {status}" for status, n in ordered)


def _where(result: Result) -> str:
    said = []
    if result.first_bad is not None:
        layer = result.first_bad.layer.removeprefix("model.layers.")
        said.append(layer + (f", step {result.first_bad.step}" if result.first_bad.step else ""))
    if result.collapsed and result.status != "collapsed":
        said.append("collapsed")
    return ", ".join(said)


def written(report: Report) -> tuple[tuple[str, tuple[Written, ...]], ...]:
    """By prompt, in the report's order: what every backend wrote, the reference first."""
    by_prompt: dict[str, list[Result]] = {}
    for result in report.results:
        by_prompt.setdefault(result.prompt, []).append(result)
    shown = []
    for prompt, results in by_prompt.items():
        results.sort(key=lambda r: r.backend != report.reference)
        first = results[0]
        right = first.tokens if first.backend == report.reference else None
        rows = tuple(_written(r, right, reference=r.backend == report.reference) for r in results)
        shown.append((prompt, rows))
    return tuple(shown)


def _written(result: Result, right: tuple[int, ...] | None, *, reference: bool) -> Written:
    ids = tuple((t, right is None or (i < len(right) and right[i] == t)) for i, t in enumerate(result.tokens))
    status = result.status + (", tokens approximate" if result.tokens_approximate else "")
    return Written(
        result.backend, status, sign(result.status), ids, result.text, reference, result.collapsed
    )  # fmt: skip


def findings(results: Sequence[Result]) -> tuple[Shared, ...]:
    """Causes; once for all results that have the very same."""
    told = told_findings(results).items()
    return tuple(Shared(_told([f"{r.backend}, {r.prompt}" for r in who]), finding=f) for f, who in told)


def workarounds(results: Sequence[Result]) -> tuple[Shared, ...]:
    """What was tried, what works first; once for all results that say the same."""
    of: dict[tuple[Workaround, ...], list[str]] = {}
    for result in results:
        if result.workarounds:
            of.setdefault(result.workarounds, []).append(f"{result.backend}, {result.prompt}")
    return tuple(
        Shared(_told(who), workarounds=tuple(sorted(tried, key=lambda w: (w.works is not True, w.works is None))))
        for tried, who in of.items()
    )


def skipped_linears(results: Sequence[Result]) -> tuple[Shared, ...]:
    """Linears, and what lies between linears, that were not compared, by reason; nobody expects it of the original."""
    of: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for r in (r for r in results if r.quantization_error is None):
        between = r.intervals.skipped if r.intervals is not None else ()
        for kind, skipped in (("", r.layers.skipped), ("between linears: ", between)):
            for reason, layers in _by_reason(skipped).items():
                of.setdefault((kind + reason, layers), []).append(f"{r.backend}, {r.prompt}")
    return tuple(Shared(_told(who), reason=reason, layers=layers) for (reason, layers), who in of.items())


def _by_reason(skipped: Sequence[SkippedLayer]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for layer in skipped:
        found[layer.reason] = (*found.get(layer.reason, ()), layer.name)
    return found


def _told(who: Sequence[str], most: int = 6) -> str:
    names = list(dict.fromkeys(who))
    more = f"; and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more
