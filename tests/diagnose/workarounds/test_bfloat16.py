"""Which kernels are run in bfloat16, and what is said of one that was."""

from __future__ import annotations

from dataclasses import replace

from gptq_diff.diagnose.workarounds.bfloat16 import FLOAT16_ONLY, KERNELS, TAKEN, of_bfloat16, out_of_range, refusal
from gptq_diff.presets import PRESETS
from gptq_diff.records import Finding
from tests.report.build import a_result, judgements

REFERENCE = replace(a_result("agree", "hf-fp32"), tokens=(5, 6), collapsed=False)
WELL = replace(REFERENCE, backend="gptq-marlin")
FINE = [replace(j, nonfinite=0, inherited_rows=0, local_l2_rel=2e-3) for j in judgements()]
HALF = [replace(j, nonfinite=0, local_l2_rel=3e-4) for j in judgements()]


def test_every_preset_takes_it_or_says_why_not() -> None:
    """Those that take it are as vLLM and torch have it; every other has its own sentence, none the one for unknown."""
    willing = {p.name for p in PRESETS if refusal(p.engine, p.kernel) is None}
    assert willing == {"hf-fp16", "vllm", "gptq-marlin", "gptq-machete"}
    modes = {(p.engine, p.kernel) for p in PRESETS}
    assert modes >= {*FLOAT16_ONLY, *KERNELS, *TAKEN}
    others = [p for p in PRESETS if p.name not in willing and p.dtype == "float16"]
    assert others and not [p.name for p in others if "never run" in str(refusal(p.engine, p.kernel))]


def test_only_what_a_wider_range_can_cure_asks_for_it() -> None:
    """Overflow by kind or by cause; a divergence does not."""
    diverged = replace(a_result("diverged", "x"), first_bad=None, findings=())
    assert out_of_range(a_result("overflow", "vllm-gptq"))
    assert not out_of_range(diverged)
    assert out_of_range(replace(diverged, findings=(Finding("accumulator-overflow", 1.0, (), None),)))
    assert not out_of_range(replace(diverged, findings=(Finding("zero-point-shift", 1.0, (), None),)))


def test_it_works_with_the_references_tokens_and_no_value_lost() -> None:
    """The price is told: the median error of a linear in either dtype."""
    found = of_bfloat16(WELL, REFERENCE, FINE, HALF)
    assert found.works and "0.002 of its output, in float16 by 0.0003 (medians)" in found.detail
    other = of_bfloat16(replace(WELL, tokens=(5, 7)), REFERENCE, FINE, HALF)
    assert other.works is False and "other tokens" in other.detail
    assert of_bfloat16(replace(WELL, collapsed=True), REFERENCE, FINE, HALF).works is False


def test_values_lost_in_bfloat16_too_are_named() -> None:
    """Lost by a linear, or already in its input; or the engine did not come to an end."""
    lost = [*FINE[:1], replace(FINE[1], nonfinite=3), *FINE[2:]]
    inherited = [replace(FINE[0], inherited_rows=1), *FINE[1:]]
    for judged, layer in ((lost, FINE[1].layer), (inherited, FINE[0].layer)):
        found = of_bfloat16(WELL, REFERENCE, judged, HALF)
        assert found.works is False and found.detail == f"{layer} still loses values"
    assert of_bfloat16(None, REFERENCE, [], HALF).detail == "the engine did not finish in bfloat16"
