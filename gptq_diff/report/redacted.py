"""Reports that can be shared: made anew, field by field, from what may be in them. What has no line here is not in it.

Every record is built from its allowed fields, so that a field which is added to a record some day stays out until
somebody decides what may be shown of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gptq_diff.records import (
    Experiment,
    Finding,
    FirstBad,
    Headroom,
    IntervalCount,
    Judgement,
    LayerCount,
    LayerError,
    ModelInfo,
    OriginalInfo,
    PartialSums,
    PromptInfo,
    QuantizationError,
    Report,
    Result,
    RowRange,
    SkippedBackend,
    SkippedLayer,
    Sweep,
    SweepRange,
    Verdict,
    Workaround,
    swept_prompt,
)
from gptq_diff.report import redacted_facts as facts
from gptq_diff.report import redacted_model as models
from gptq_diff.report.redacted_reasons import backend_reason, layer_reason
from gptq_diff.report.redacted_words import MASK, Words, known, layer_name
from gptq_diff.text import clean

_FORMATS = frozenset({"gptq", "gptq_v2"})
_JUDGED = (
    "index", "step", "rank", "rows", "elements", "nonfinite", "first_index", "inherited_rows", "local_l2_rel",
    "noise_floor", "excess", "worst_row", "inherited_l2_rel", "input_absmax", "exact_absmax", "output_absmax",
    "max_abs",
)  # fmt: skip
"""Numbers of a judgement."""
_FIRST_BAD = (
    "index", "step", "nonfinite", "elements", "first_index", "local_l2_rel", "noise_floor", "inherited_l2_rel",
    "input_absmax", "exact_absmax", "excess", "rows", "rank",
)  # fmt: skip
_HEADROOM = ("ran", "bits", "step", "row", "column", "channel", "activation", "weight", "value", "terms")


def redacted(report: Report, *, include_prompts: bool = False) -> Report:
    """The report as it may be shared.

    include_prompts: prompts' own ids stay, and what backends wrote, as text and as token ids.
    """
    return Redaction.of(report, include_prompts=include_prompts).report(report)


@dataclass(frozen=True)
class Redaction:
    """What things are called in what is shared. prompts, backends: by their own names."""

    prompts: Mapping[str, str]
    backends: Mapping[str, str]
    words: Words
    include_prompts: bool

    @staticmethod
    def of(report: Report, *, include_prompts: bool) -> Redaction:
        """The names for one report."""
        ids = [p.id for p in report.prompts]
        prompts = {i: clean(i) for i in ids} if include_prompts else _numbered(ids, {s.prompt for s in report.sweeps})
        names = [r.backend for r in report.results] + [s.backend for s in report.skipped_backends]
        names += [report.reference, *(s.backend for s in report.sweeps), *(h.backend for h in report.headroom)]
        unknown = [name for name in dict.fromkeys(names) if not known(name)]
        backends = {name: f"backend-{unknown.index(name) + 1}" if name in unknown else name for name in names}
        return Redaction(prompts, backends, Words({**prompts, **backends}), include_prompts)

    def prompt(self, name: str) -> str:
        """What that prompt is called."""
        return self.prompts.get(name, MASK)

    def backend(self, name: str) -> str:
        """What that backend is called."""
        return self.backends.get(name, MASK)

    def report(self, r: Report) -> Report:
        """The whole report."""
        return Report(
            schema_version=r.schema_version, gptq_diff=facts.version(r.gptq_diff) or "", created=_stamp(r.created),
            model=_model(r.model), reference_model=None if r.reference_model is None else _model(r.reference_model),
            environment=facts.environment(r.environment), reference=self.backend(r.reference),
            prompts=tuple(PromptInfo(self.prompt(p.id), p.tokens, models.fingerprint(p.sha256)) for p in r.prompts),
            verdict=self._verdict(r.verdict), results=tuple(map(self.result, r.results)),
            skipped_backends=tuple(
                SkippedBackend(self.backend(s.backend), backend_reason(s.reason), "") for s in r.skipped_backends
            ),
            left_out=self._said(r.left_out), allow_skip=r.allow_skip, original_model=_original(r.original_model),
            sweeps=tuple(map(self._sweep, r.sweeps)), headroom=tuple(map(self._headroom, r.headroom)),
        )  # fmt: skip

    def result(self, r: Result) -> Result:
        """What one backend did with one prompt."""
        return Result(
            backend=self.backend(r.backend), prompt=self.prompt(r.prompt), engine=_word(r.engine),
            kernel={layer_name(k): self.words.kept(v) for k, v in r.kernel.items()},
            versions=facts.versions(r.versions), status=_word(r.status), first_bad=_first_bad(r.first_bad),
            tokens=r.tokens if self.include_prompts else (),
            text=clean(r.text) if self.include_prompts and r.text is not None else None,
            collapsed=r.collapsed, collapse_token=r.collapse_token, first_token_kl=r.first_token_kl,
            first_different_token=r.first_different_token, cached_rows=r.cached_rows,
            layers=LayerCount(r.layers.compared, self._skipped(r.layers.skipped), r.layers.bounded), steps=r.steps,
            bad_layers=r.bad_layers, worst_excess=r.worst_excess, findings=tuple(map(self._finding, r.findings)),
            workarounds=tuple(
                Workaround(self.words.kept(w.name), w.tried, w.works, self.words.kept(w.detail)) for w in r.workarounds
            ),
            headroom_bits={layer_name(k): v for k, v in r.headroom_bits.items()},
            seconds={k: v for k, v in r.seconds.items() if known(k)}, peak_rss_bytes=r.peak_rss_bytes,
            peak_private_bytes=r.peak_private_bytes, peak_gpu_bytes=r.peak_gpu_bytes,
            quantization_error=_quantisation(r.quantization_error),
            experiments=tuple(map(self._experiment, r.experiments)),
            intervals=None if r.intervals is None else IntervalCount(
                r.intervals.compared, self._skipped(r.intervals.skipped), r.intervals.worst_excess
            ),
            tokens_approximate=r.tokens_approximate,
        )  # fmt: skip

    def judgement(self, j: Judgement) -> Judgement:
        """One kernel call."""
        cause = None if j.cause is None else _word(j.cause)
        part = j.part if j.part.isdigit() else "" if not j.part else _word(j.part)
        numbers = {name: getattr(j, name) for name in _JUDGED}
        return Judgement(
            layer=layer_name(j.layer),
            path=self.words.kept(j.path),
            kind=_word(j.kind),
            cause=cause,
            part=part,
            **numbers,
        )

    def _verdict(self, v: Verdict) -> Verdict:
        return Verdict(
            _word(v.status), None if v.backend is None else self.backend(v.backend),
            None if v.prompt is None else self.prompt(v.prompt), None if v.layer is None else layer_name(v.layer),
            self.words.kept(v.summary),
        )  # fmt: skip

    def _finding(self, f: Finding) -> Finding:
        layer = None if f.layer is None else layer_name(f.layer)
        sums = None
        if f.sums is not None:  # numbers, but for what it says
            said, s = self.words.kept(f.sums.says), f.sums
            sums = PartialSums(said, s.row, s.column, s.channels, s.exact, s.half, s.limit)
        return Finding(_word(f.cause), f.confidence, self._said(f.evidence), layer, self.words.kept(f.summary), sums)

    def _experiment(self, e: Experiment) -> Experiment:
        evidence = ("not all were made",) if e.name == "not-run" else self._said(e.evidence)
        ranges = tuple(
            RowRange(r.first, r.last, self.words.kept(r.path), _word(r.kind), r.nonfinite, r.local_l2_rel)
            for r in e.ranges
        )
        return Experiment(
            _word(e.name), layer_name(e.layer), e.step, self.words.kept(e.did),
            {kept: v for k, v in e.figures.items() if (kept := self.words.whole(k))}, evidence,
            None if e.finding is None else self._finding(e.finding), ranges,
        )  # fmt: skip

    def _sweep(self, s: Sweep) -> Sweep:
        ranges = tuple(
            SweepRange(r.first, r.last, _word(r.status), None if r.layer is None else layer_name(r.layer))
            for r in s.ranges
        )
        prompt = next((swept_prompt(new) for old, new in self.prompts.items() if swept_prompt(old) == s.prompt), MASK)
        return Sweep(self.backend(s.backend), prompt, s.first, s.last, s.step, ranges)

    def _headroom(self, h: Headroom) -> Headroom:
        numbers = {name: getattr(h, name) for name in _HEADROOM}
        return Headroom(
            backend=self.backend(h.backend), arithmetic=_word(h.arithmetic), layer=layer_name(h.layer),
            prompt=self.prompt(h.prompt), **numbers,
        )  # fmt: skip

    def _skipped(self, layers: Iterable[SkippedLayer]) -> tuple[SkippedLayer, ...]:
        return tuple(SkippedLayer(layer_name(s.name), layer_reason(s.reason, self.words)) for s in layers)

    def _said(self, sentences: Iterable[str]) -> tuple[str, ...]:
        return tuple(map(self.words.kept, sentences))


def _numbered(ids: list[str], swept: set[str]) -> dict[str, str]:
    """p1, p2, ... in order; lengths of one swept prompt keep their length behind its number."""
    bases: dict[str, str] = {}
    names = {}
    for name in ids:
        base = swept_prompt(name) if swept_prompt(name) in swept else name
        number = bases.setdefault(base, f"p{len(bases) + 1}")
        names[name] = number if base == name else f"{number}-t{name.rpartition('-t')[2]}"
    return names


def _word(name: str) -> str:
    return name if known(name) else MASK


def _stamp(created: str) -> str:
    """RFC 3339 to the second, in UTC."""
    return created if len(created) <= 25 and not set(created) - set("0123456789-:+TZ") else ""


def _model(m: ModelInfo) -> ModelInfo:
    return ModelInfo(
        path=models.public_name(m.path), architecture=models.architecture(m.architecture), bits=m.bits,
        group_size=m.group_size, sym=m.sym, desc_act=m.desc_act, format=m.format if m.format in _FORMATS else MASK,
        quantized_linears=m.quantized_linears, fingerprint=models.fingerprint(m.fingerprint),
    )  # fmt: skip


def _original(o: OriginalInfo | None) -> OriginalInfo | None:
    if o is None:
        return None
    name = models.public_name(o.path)
    return OriginalInfo(name, models.architecture(o.architecture), models.fingerprint(o.fingerprint))


def _first_bad(b: FirstBad | None) -> FirstBad | None:
    if b is None:
        return None
    numbers = {name: getattr(b, name) for name in _FIRST_BAD}
    return FirstBad(layer=layer_name(b.layer), kind=_word(b.kind), path=Words({}).kept(b.path), **numbers)


def _quantisation(q: QuantizationError | None) -> QuantizationError | None:
    if q is None:
        return None
    layers = {layer_name(k): LayerError(v.local_l2_rel, v.inherited_l2_rel) for k, v in q.layers.items()}
    worst = None if q.worst_layer is None else layer_name(q.worst_layer)
    return QuantizationError(q.median_l2_rel, q.worst_l2_rel, worst, layers)
