"""What is said of workarounds that were run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptq_diff.diagnose.workarounds.other_backends import other_backends
from gptq_diff.diagnose.workarounds.padding import of_padded, padded, worth_padding
from tests.report.build import a_result, judgements

FAILED = a_result("overflow", "vllm-gptq")
REFERENCE = replace(a_result("agree", "hf-fp32"), tokens=(5, 6), collapsed=False)


def test_the_pad_comes_after_the_first_token() -> None:
    """It is the first token whose activation is massive; a prompt that is long enough stays as it is."""
    assert padded((1, 2, 3), 9, 6) == (1, 9, 9, 9, 2, 3)
    assert padded((1, 2, 3), 9, 3) == (1, 2, 3)


def test_padding_is_for_short_prompts_on_the_fused_path() -> None:
    bad = next(j for j in judgements() if j.kind == "overflow")
    assert worth_padding(replace(bad, path="exllama-fast"), 37, 51)
    assert not worth_padding(replace(bad, path="exllama-fast"), 51, 51)
    assert not worth_padding(replace(bad, path="marlin"), 37, 51)


def test_what_a_padded_prompt_gave() -> None:
    """It works where nothing breaks and the output does not collapse; the pad is told."""
    bad = next(j for j in judgements() if j.kind == "overflow")
    still = of_padded(37, 51, "a line break", bad, collapsed=True, text="!!", same=False)
    dumb = of_padded(37, 51, "a line break", None, collapsed=True, text="!!", same=False)
    well = of_padded(37, 51, "a line break", None, collapsed=False, text="Paris", same=False)
    assert (still.works, dumb.works, well.works) == (False, False, True)
    assert bad.layer in still.detail
    assert "14 times a line break" in well.detail
    assert "'Paris'" in well.detail


def test_another_backend_works_with_the_references_tokens_alone() -> None:
    right = replace(a_result("agree", "vllm-reconstruct"), tokens=(5, 6), collapsed=False)
    other = replace(a_result("agree", "gptq-marlin"), tokens=(7,), collapsed=False)
    broken = a_result("overflow", "vllm-exllama")
    elsewhere = replace(right, prompt="long")
    found = other_backends(FAILED, [REFERENCE, FAILED, right, other, broken, elsewhere], REFERENCE)
    assert {w.name: w.works for w in found} == {
        "backend vllm-reconstruct": True, "backend gptq-marlin": False, "backend vllm-exllama": False,
    }  # fmt: skip
    assert all(w.tried for w in found)


@pytest.mark.parametrize(
    ("backend", "path", "words"),
    [
        ("hf-fp16", "fp16", "16 bits for each code"),
        ("vllm-reconstruct", "exllama-reconstruct", "for every call"),
        ("gptq-marlin", "marlin", "Marlin takes"),
        ("sim-reconstruct", "exllama-reconstruct", "a simulation"),
    ],
)
def test_what_works_says_what_it_costs(backend: str, path: str, words: str) -> None:
    """By the path that ran; a simulator is no engine."""
    well = replace(REFERENCE, backend=backend, prompt=FAILED.prompt, kernel={"*": path}, status="agree")
    (found,) = other_backends(FAILED, [FAILED, well], replace(REFERENCE, prompt=FAILED.prompt))
    assert found.works and words in found.detail
