"""What happened, in the words of an expectation, and whether it is what was expected: both ways round."""

from __future__ import annotations

from collections.abc import Sequence

from gptq_diff.records import Checked, Expectation, Report, Result, Seen

HEALTHY = "agree"


def seen_in(report: Report) -> tuple[Seen, ...]:
    """What a report says of every backend and prompt that ran; the unquantised model is not judged."""
    return tuple(_seen(result) for result in report.results if result.quantization_error is None)


def _seen(result: Result) -> Seen:
    bad = result.first_bad
    here = [f for f in result.findings if bad is None or f.layer == bad.layer]
    cause = here[0].cause if here and result.status != HEALTHY else None
    layer = bad.layer if bad is not None else None
    if bad is None and here and cause is not None:
        layer = here[0].layer  # outputs that differ from repeat to repeat have no bad call
    at = f" at {layer}" if layer else ""
    said = f"{result.status}{at}{f', {cause}' if cause else ''}{', collapsed' if result.collapsed else ''}"
    return Seen(result.backend, result.prompt, result.status, layer, cause, result.collapsed,
                result.layers.compared, said)  # fmt: skip


def check_expectations(expected: Sequence[Expectation], seen: Sequence[Seen]) -> tuple[Checked, ...]:
    """Every expectation on everything it names, then what none of them names: that has to agree.

    An expectation that names nothing that ran did not hold: nothing happened where something was expected.
    """
    checks = []
    for one in expected:
        named = [s for s in seen if one.backend in (None, s.backend) and one.prompt in (None, s.prompt)]
        checks += [Checked(s.backend, s.prompt, one, s, _differences(one, s)) for s in named]
        if not named:
            what = f"expected {one.said}, and nothing ran"
            checks.append(Checked(one.backend or "", one.prompt or "", one, None, (what,)))
    told = {(c.backend, c.prompt) for c in checks}
    silent = Expectation(status=HEALTHY)
    for s in seen:
        if (s.backend, s.prompt) not in told:
            checks.append(Checked(s.backend, s.prompt, silent, s, _differences(silent, s), stated=False))
    return tuple(checks)


def _differences(expected: Expectation, seen: Seen) -> tuple[str, ...]:
    """A phrase for everything that is otherwise; a layer or a cause that came unexpected among it."""
    healthy = expected.status == HEALTHY
    pairs = (
        ("status", expected.status, seen.status if expected.status else None),
        ("layer", expected.layer, seen.layer if expected.layer or healthy else None),
        ("cause", expected.cause, seen.cause if expected.cause or healthy else None),
        ("collapsed", expected.collapsed, seen.collapsed if expected.collapsed is not None else None),
    )
    return tuple(
        f"{what}: expected {_word(wanted)}, happened {_word(happened)}" for what, wanted, happened in pairs
        if wanted != happened
    )  # fmt: skip


def _word(value: str | bool | None) -> str:
    return {None: "none", True: "yes", False: "no"}.get(value, str(value)) if not isinstance(value, str) else value
