"""From a capture and its judgements to findings: the bad layers in order, each explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gptq_diff.capture.tap import BIAS
from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.compare.align import STEPS_AFTER, Captured
from gptq_diff.compare.judge import placed
from gptq_diff.compare.judge_run import layer_weight
from gptq_diff.compare.results import BAD_KINDS, causes
from gptq_diff.diagnose.bias_step import explain_bias
from gptq_diff.diagnose.calls import MOVING, OtherCall, between_calls, other_call
from gptq_diff.diagnose.case import Case, case_of
from gptq_diff.diagnose.explain import explain_case
from gptq_diff.diagnose.parts import Source, Unpacked
from gptq_diff.records import Finding, Judgement

if TYPE_CHECKING:
    import torch

    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.compare.judge import CapturedCall

MOST_LAYERS = 8
"""Bad layers of one capture that are explained: the first ones; as many keep their tensors."""
MOST_OTHERS = 8
"""Other calls of a layer that are looked at where nothing explains one."""
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linears that engines fuse, in the fused order."""


def first_bad_of_layers(judgements: Sequence[Judgement]) -> list[Judgement]:
    """The first bad call of every bad layer, in order."""
    found: dict[str, Judgement] = {}
    for j in judgements:
        if j.kind in BAD_KINDS:
            found.setdefault(j.layer, j)
    return list(found.values())[:MOST_LAYERS]


class Diagnosis:
    """Explains the bad layers of one backend's captures.

    captures, judgements: by prompt, of the same backend. What is found of one prompt's layer is found anew for the
    next: inputs differ, and so may causes. loaded: the checkpoint that the backend loaded.
    """

    def __init__(
        self, captures: dict[str, Captured], judgements: dict[str, list[Judgement]], judge: Checkpoint,
        loaded: Checkpoint,
    ) -> None:  # fmt: skip
        self.captures = captures
        self.judgements = judgements
        self.judge = judge
        self.loaded = loaded
        self.specs = {spec.name: spec for spec in judge.layers}
        self.bad = {
            prompt: {(j.layer, j.step, j.part) for j in js if j.kind in BAD_KINDS} for prompt, js in judgements.items()
        }

    def of_prompt(self, prompt: str) -> list[Finding]:
        """Findings of one capture, the first bad layer's first; those of layers whose tensors are gone are left out."""
        findings: list[Finding] = []
        for j in first_bad_of_layers(self.judgements[prompt]):
            known = causes([j])
            findings += self._of_bias(prompt, j) or known or self._of_call(prompt, j)
        return findings

    def _of_bias(self, prompt: str, j: Judgement) -> list[Finding]:
        """Where the product is right and the bias is not."""
        if j.path != BIAS or j.cause != BIAS:
            return []
        calls = self.captures[prompt].calls(j.layer)
        return [explain_bias(j.layer, c, self.judge) for c in calls if c.path == BIAS and c.step == j.step]

    def _of_call(self, prompt: str, j: Judgement) -> list[Finding]:
        calls = self.captures[prompt].calls(j.layer)
        call = next((c for c in calls if c.step == j.step and c.part == j.part), None)
        if call is None or call.path in STEPS_AFTER or j.layer not in self.specs:
            return []
        spec = self.specs[j.layer]
        w_KN = layer_weight(spec, self.judge, self.loaded).w_KN
        call = placed(call, spec.in_features)
        source = self._source(j.layer)
        case = case_of(source, call.path, call.x_MK, call.y_MN, w_KN)
        if case is None:
            return []
        other_weight = dequantise(self.loaded.packed(j.layer)) if self.loaded is not self.judge else None
        findings = explain_case(case, call.x_MK, call.y_MN, other_weight)
        if any(f.cause in MOVING for f in findings):
            others = self._others((prompt, call.step), case, call, w_KN)
            findings = [between_calls(f, j.rows, others) for f in findings]
        place = ", ".join([*([f"decode step {j.step}"] if j.step else []), *([f"rank {j.part}"] if j.part else [])])
        return [replace(f, evidence=(*f.evidence, f"seen in {place}")) for f in findings] if place else findings

    def _others(self, at: tuple[str, int], first: Case, call: CapturedCall, w_KN: torch.Tensor) -> list[OtherCall]:
        """The layer's other calls by the same path, of every prompt and step; at: the prompt and step of the first."""
        found: list[OtherCall] = []
        source = first.source
        layer = source.spec.name
        for prompt, captured in self.captures.items():
            for other in captured.calls(layer):
                same_kind = other.path == call.path and other.part == call.part
                if not same_kind or (prompt, other.step) == at or len(found) >= MOST_OTHERS:
                    continue
                other = placed(other, source.spec.in_features)
                case = case_of(source, other.path, other.x_MK, other.y_MN, w_KN)
                if case is not None:
                    bad = (layer, other.step, other.part) in self.bad[prompt]
                    found.append(other_call(case, first, bad=bad))
        return found

    def _source(self, layer: str) -> Source:
        """With the linears that engines fuse with this one, where the checkpoint has them all."""
        parent, _, own = layer.rpartition(".")
        names = next((group for group in FUSED if own in group), (own,))
        layers = [f"{parent}.{name}" if parent else name for name in names]
        if any(name not in self.specs for name in layers):
            layers = [layer]
        return Source([Unpacked(self.judge.packed(name)) for name in layers], layers.index(layer))
