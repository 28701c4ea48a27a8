"""From a capture and its judgements to findings: the bad layers in order, each explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gptq_diff.compare.align import STEPS_AFTER, Captured
from gptq_diff.compare.judge import placed
from gptq_diff.compare.judge_run import layer_weight
from gptq_diff.compare.results import BAD_KINDS, causes
from gptq_diff.diagnose.calls import OtherCall, between_calls, other_call
from gptq_diff.diagnose.case import case_of
from gptq_diff.diagnose.explain import explain_call
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

    captures: by prompt, of the same backend. What is found of one prompt's layer is found anew for the next: inputs
    differ, and so may causes.
    """

    def __init__(self, captures: dict[str, Captured], judge: Checkpoint, loaded: Checkpoint) -> None:
        self.captures = captures
        self.judge = judge
        self.loaded = loaded
        self.specs = {spec.name: spec for spec in judge.layers}

    def of_prompt(self, prompt: str, judgements: Sequence[Judgement]) -> list[Finding]:
        """Findings of one capture, the first bad layer's first; those of layers whose tensors are gone are left out."""
        findings: list[Finding] = []
        for j in first_bad_of_layers(judgements):
            known = causes([j])
            findings += known or self._of_call(prompt, j)
        return findings

    def _of_call(self, prompt: str, j: Judgement) -> list[Finding]:
        calls = self.captures[prompt].calls(j.layer)
        call = next((c for c in calls if c.step == j.step and c.part == j.part), None)
        if call is None or call.path in STEPS_AFTER or j.layer not in self.specs:
            return []
        spec = self.specs[j.layer]
        weight = layer_weight(spec, self.judge, self.loaded)
        call = placed(call, spec.in_features)
        source = self._source(j.layer)
        findings = explain_call(source, call.path, call.x_MK, call.y_MN, weight.w_KN)
        if any(f.cause == "unknown" for f in findings):
            bad = case_of(source, call.path, call.x_MK, call.y_MN, weight.w_KN)
            assert bad is not None
            others = self._others(source, call, weight.w_KN, bad.bad)
            findings = [between_calls(f, j.rows, others) for f in findings]
        where = "" if j.step == 0 else f"decode step {j.step}"
        rank = f"rank {j.part}" if j.part.isdigit() else ""
        place = ", ".join(part for part in (where, rank) if part)
        return [replace(f, evidence=(*f.evidence, f"seen in {place}")) for f in findings] if place else findings

    def _others(self, source: Source, call: CapturedCall, w_KN: torch.Tensor, bad_N: torch.Tensor) -> list[OtherCall]:
        """The layer's other calls by the same path, of every prompt and step."""
        found: list[OtherCall] = []
        for captured in self.captures.values():
            for other in captured.calls(source.spec.name):
                if other.path != call.path or other.part != call.part or other.y_MN is call.y_MN:
                    continue
                if len(found) >= MOST_OTHERS:
                    return found
                other = placed(other, source.spec.in_features)
                case = case_of(source, other.path, other.x_MK, other.y_MN, w_KN)
                if case is not None and not (other.step == call.step and other.x_MK.data_ptr() == call.x_MK.data_ptr()):
                    found.append(other_call(case, bad_N))
        return found

    def _source(self, layer: str) -> Source:
        parent, _, own = layer.rpartition(".")
        names = next((group for group in FUSED if own in group), (own,))
        layers = [f"{parent}.{name}" if parent else name for name in names]
        if any(name not in self.specs for name in layers):
            layers = [layer]
        return Source([Unpacked(self.judge.packed(name)) for name in layers], layers.index(layer))
