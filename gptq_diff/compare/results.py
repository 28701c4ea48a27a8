"""From judgements to results: the status of each backend and prompt, and the sentence about the worst one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from gptq_diff.capture.store import CaptureReader
from gptq_diff.capture.tap import ALL_REDUCE, BIAS, REPLICATED
from gptq_diff.compare.quantisation import summary
from gptq_diff.compare.tokens import collapse, first_different_token, first_token_kl
from gptq_diff.records import (
    BOUNDED,
    INTERVALS,
    NOT_SIMULATED,
    ORIGINAL,
    Finding,
    FirstBad,
    Judgement,
    LayerCount,
    Result,
    SkippedLayer,
    Verdict,
)

SEVERITY = ("overflow", "nan", "diverged", "nondeterministic", "collapsed", "incomplete", "agree")
"""Worst first: the cause nearest the kernel wins (contract.md)."""
FAILURES = frozenset(SEVERITY[: SEVERITY.index("incomplete")])
"""Statuses that are numeric failures."""
BAD_KINDS = frozenset({"overflow", "nan", "diverged"})
NOT_QUANTISED = "it is not quantised in this backend, so there is no kernel to judge"


@dataclass(frozen=True)
class BackendRun:
    """What is known of a backend besides its captures."""

    engine: str
    kernel: str
    versions: dict[str, str]
    seconds: dict[str, float]
    peak_rss: int | None
    peak_private: int | None
    peak_gpu: int | None


def first_bad(judgements: Sequence[Judgement]) -> FirstBad | None:
    """The first call, in (step, index) order, whose kind is bad."""
    for j in judgements:
        if j.kind in BAD_KINDS:
            return FirstBad(
                layer=j.layer, index=j.index, step=j.step, kind=j.kind, nonfinite=j.nonfinite, elements=j.elements,
                first_index=j.first_index, local_l2_rel=j.local_l2_rel, noise_floor=j.noise_floor,
                inherited_l2_rel=j.inherited_l2_rel, input_absmax=j.input_absmax, exact_absmax=j.exact_absmax,
                excess=j.excess, path=j.path, rows=j.rows, rank=j.rank if j.part.isdigit() else None,
            )  # fmt: skip
    return None


def in_order(judgements: Sequence[Judgement], intervals: Sequence[Judgement]) -> list[Judgement]:
    """Linears and intervals in order of execution: an interval comes before the linear whose input it makes."""
    return sorted([*intervals, *judgements], key=lambda j: (j.step, j.index))  # stable


def layer_count(
    judgements: Sequence[Judgement], quantized: Sequence[str], skipped: dict[str, str], bounded: Set[str] = frozenset()
) -> LayerCount:
    """Compared: judged at least once on rows that were not already lost; the others with the reason.

    A bias that was judged is no product. bounded: linears that a simulator proved safe in some step.
    """
    judged = {j.layer for j in judgements if j.kind not in ("inherited", ORIGINAL) and j.path != BIAS}
    inherited = {j.layer for j in judgements if j.kind == "inherited"} - judged
    plain = {j.layer for j in judgements if j.kind == ORIGINAL}
    reasons = dict.fromkeys(inherited, "its input was already NaN or infinite") | dict.fromkeys(plain, NOT_QUANTISED)
    reasons |= skipped | dict.fromkeys(bounded, NOT_SIMULATED)
    left_out = tuple(SkippedLayer(n, reasons[n]) for n in quantized if n in reasons and n not in judged)
    return LayerCount(len(judged), left_out, sum(layer.reason == NOT_SIMULATED for layer in left_out))


def status_of(
    bad: FirstBad | None, layers: LayerCount, quantized: int, *, collapsed: bool, original: bool = False
) -> str:
    """contract.md, STATUS; a linear neither compared nor skipped makes a run incomplete.

    original: the unquantised model, in which there is nothing to compare: what it writes is all there is to say of it.
    """
    if bad is not None:
        return bad.kind
    if (layers.compared + layers.bounded == 0 and not original) or layers.compared + len(layers.skipped) != quantized:
        return "incomplete"
    return "collapsed" if collapsed else "agree"


def kernel_globs(judgements: Sequence[Judgement], bounded: Set[str] = frozenset()) -> dict[str, str]:
    """Path by layer glob: "*" for the commonest, exceptions by name; decode named apart where it differs.

    bounded: linears of which some call was proved safe and not made.
    """
    paths: dict[str, dict[str, None]] = {layer: {BOUNDED: None} for layer in sorted(bounded)}
    for j in judgements:
        if j.path in {ALL_REDUCE, BIAS, REPLICATED}:
            continue  # no kernel
        name = j.path if j.step == 0 else f"{j.path} (decode)"
        if j.step == 0 or j.path not in paths.get(j.layer, {}):
            paths.setdefault(j.layer, {})[name] = None
    joined = {layer: ", ".join(names) for layer, names in paths.items()}
    if not joined:
        return {}
    common = Counter(joined.values()).most_common(1)[0][0]
    return {"*": common} | {layer: name for layer, name in joined.items() if name != common}


def make_result(
    capture: CaptureReader, reference: CaptureReader | None, judgements: Sequence[Judgement],
    quantized: Sequence[str], run: BackendRun, text: str | None, notes: dict[str, str], *, is_reference: bool,
    intervals: Sequence[Judgement] = (),
) -> Result:  # fmt: skip
    """The result of one capture; reference is None for the reference itself, and where the reference failed.

    notes: layer -> why it could not be judged by any backend. intervals: judgements of what is between linears.
    """
    manifest = capture.manifest
    ref_manifest = reference.manifest if reference is not None else None
    collapsed, token = (False, None) if is_reference else collapse(manifest, ref_manifest)
    bad, original = first_bad(in_order(judgements, intervals)), run.kernel == ORIGINAL
    bounded = bounded_layers(capture)
    layers = layer_count(judgements, quantized, {**notes, **manifest.skipped}, bounded)
    findings = causes(judgements) or spoilt(judgements, manifest.cached_rows)
    excesses = [j.excess for j in judgements if j.excess is not None]
    return Result(
        backend=manifest.backend, prompt=manifest.prompt, engine=run.engine, kernel=kernel_globs(judgements, bounded),
        versions=run.versions, first_bad=bad,
        status=status_of(bad, layers, len(quantized), collapsed=collapsed, original=original),
        tokens=manifest.tokens, text=text, collapsed=collapsed, collapse_token=token,
        first_token_kl=first_token_kl(capture.first_logits(), reference.first_logits()) if reference else None,
        first_different_token=first_different_token(manifest.tokens, ref_manifest.tokens) if ref_manifest else None,
        cached_rows=manifest.cached_rows, layers=layers, steps=manifest.steps,
        bad_layers=len({j.layer for j in judgements if j.kind in BAD_KINDS}),
        worst_excess=max(excesses, default=None), findings=findings,
        workarounds=(), headroom_bits={},
        seconds={**run.seconds, **manifest.seconds}, peak_rss_bytes=run.peak_rss,
        peak_private_bytes=run.peak_private, peak_gpu_bytes=run.peak_gpu,
        quantization_error=summary(judgements) if original else None, tokens_approximate=bool(bounded),
    )  # fmt: skip


def bounded_layers(capture: CaptureReader) -> frozenset[str]:
    """The linears of which some call was proved safe and not simulated."""
    if BOUNDED not in capture.manifest.kernels.values() and capture.manifest.steps == 1:
        return frozenset()
    return frozenset(figures["layer"] for figures in capture.stats() if figures["path"] == BOUNDED)


def causes(judgements: Sequence[Judgement]) -> tuple[Finding, ...]:
    """The cause of the first bad call, where judging it already says so; the rest is for probes to find out."""
    j = next((j for j in judgements if j.kind in BAD_KINDS), None)
    if j is None or j.cause is None:
        return ()
    evidence = {
        "result-overflow": f"the exact answer itself, up to {j.exact_absmax:,.0f}, is beyond float16 (65,504)",
        "nan-weights": f"{j.nonfinite} outputs lie in columns whose scales are NaN or infinite",
        "bias": "the product is as its kernel's rounding explains; with the engine's bias added it is not",
        "all-reduce": "every rank's own product is as its kernel's rounding explains; "
        + ("a rank holds another value than its peers" if j.path == REPLICATED else "their sum over the ranks is not"),
    }
    return (Finding(j.cause, 1.0, (evidence[j.cause],), j.layer),)


def spoilt(judgements: Sequence[Judgement], cached_rows: int) -> tuple[Finding, ...]:
    """Where no call is bad and an input is lost all the same, though rows of the prompt came from a prefix cache."""
    lost = next((j for j in judgements if j.step == 0 and (j.kind == "inherited" or j.inherited_rows)), None)
    if not cached_rows or lost is None or any(j.kind in BAD_KINDS for j in judgements):
        return ()
    evidence = (
        f"{cached_rows} rows of the prompt came from the prefix cache, and {lost.rows} were computed",
        f"no linear errs on these, and the input of {lost.layer} is NaN or infinite: what the cache holds of an "
        "earlier prompt came in through attention",
    )
    return (Finding("nan-input", 0.9, evidence, lost.layer),)


def verdict(results: Sequence[Result], quantized: int) -> Verdict:
    """The worst result, in one sentence; the first of equals in the order given."""
    if not results:
        return Verdict("incomplete", None, None, None, "Nothing was compared: no backend finished a prompt.")
    worst = min(results, key=lambda r: SEVERITY.index(r.status))
    layer = worst.first_bad.layer if worst.first_bad else None
    if worst.status == "agree":
        judged = [r for r in results if r.quantization_error is None]
        if not judged:
            return Verdict("incomplete", None, None, None, "Nothing was compared: only the unquantised model ran.")
        names = list(dict.fromkeys(r.backend for r in judged))
        prompts = len({r.prompt for r in judged})
        bounded = max(r.layers.bounded for r in judged)
        safe = f", {bounded} proved safe and not simulated" if bounded else ""
        said = (
            f"{f'All {len(names)} backends agree' if len(names) > 1 else f'{names[0]} agrees'} with the exact answer "
            "on every linear judged "
            f"(compared {min(r.layers.compared for r in judged)} of {quantized}{safe}, "
            f"{prompts} prompt{'s' if prompts > 1 else ''})."
        )
        return Verdict("agree", None, None, None, said)
    return Verdict(worst.status, worst.backend, worst.prompt, layer, sentence(worst, quantized))


def cause_of(result: Result) -> Finding | None:
    """The surest cause of the first bad layer, if one is known."""
    bad = result.first_bad
    known = [f for f in result.findings if f.cause != "unknown" and bad is not None and f.layer == bad.layer]
    return known[0] if known else None


def _why(result: Result) -> str:
    cause = cause_of(result)
    if cause is None or cause.cause in {"result-overflow", "nan-weights", "all-reduce"}:  # the sentence says it already
        return ""
    return f" Cause: {cause.summary or cause.cause}."


def _collapsed(result: Result) -> str:
    if not result.collapsed:
        return ""
    if len(set(result.tokens)) == 1:
        return f" It then writes only token {result.collapse_token}."
    return f" No logit is finite where it then writes token {result.collapse_token}."


def sentence(result: Result, quantized: int) -> str:
    """What happened, where, and how large it was."""
    where = f"on {result.backend} (prompt {result.prompt})"
    bad = result.first_bad
    collapsed = _why(result) + _collapsed(result)
    if bad is None:
        if result.status == "incomplete":
            return (
                f"No verdict {where}: compared {result.layers.compared} of {quantized} linears, "
                f"{len(result.layers.skipped)} skipped with a reason."
            )
        if result.status == "nondeterministic":
            unstable = next((f.layer for f in result.findings if f.layer is not None), None)
            at = f", first at {unstable}" if unstable else ""
            more = "more than sums in another order explain"
            return f"Other outputs {where} for the same input, {more}{at}.{collapsed}"
        return f"No linear is to blame {where}, yet its output collapsed to token {result.collapse_token}."
    step = "" if bad.step == 0 else f", decode step {bad.step}"
    at = "" if bad.rank is None else f", rank {bad.rank}"
    if bad.path in INTERVALS:
        return f"{_interval(bad, where + step)}{collapsed}"
    start = f"{bad.layer} is the first layer to break {where}{step}{at}: "
    if bad.path == REPLICATED:
        return f"{start}tensor-parallel ranks hold different values where each should hold the same.{collapsed}"
    if bad.path == ALL_REDUCE:
        start = f"{start}in the sum over the ranks, "
    if bad.path == BIAS:
        start = f"{start}where its bias is added, "
    if bad.kind == "overflow":
        count = f"{bad.nonfinite} infinite or NaN output{'s' if bad.nonfinite > 1 else ''}"
        if any(f.cause == "result-overflow" for f in result.findings):
            why = f"since the exact answer itself, up to {bad.exact_absmax:,.0f}, is beyond float16"
            return f"{start}{count}, {why}.{collapsed}"
        return f"{start}{count} where the exact answer is at most {bad.exact_absmax:,.0f}.{collapsed}"
    if bad.kind == "nan":
        return f"{start}{bad.nonfinite} outputs are not finite because the weight's own scales are not.{collapsed}"
    error, floor = bad.local_l2_rel, bad.noise_floor
    sizes = f"{error:.2g} where rounding explains {floor:.2g}" if error is not None and floor is not None else "large"
    return f"{start}its error on its own input is {sizes} (relative l2).{collapsed}"


def _interval(bad: FirstBad, where: str) -> str:
    """What broke between linears."""
    what = "The output head" if bad.path == "lm_head" else f"The {bad.path} before {bad.layer}"
    start = f"{what} is the first to break {where}, between linears: "
    if bad.kind == "overflow":
        why = f"since its exact result, up to {bad.exact_absmax:,.0f}, is beyond the dtype"
        return f"{start}{bad.nonfinite} infinite values, {why}."
    if bad.kind == "nan":
        return f"{start}{bad.nonfinite} infinite or NaN values, though everything it is computed from is finite."
    sizes = "" if bad.local_l2_rel is None else f" by {bad.local_l2_rel:.2g}"
    floor = "" if bad.noise_floor is None else f", where rounding explains {bad.noise_floor:.2g} (relative l2)"
    return f"{start}what it gives differs{sizes} from what its own inputs give{floor}."
