"""No false alarm on healthy models, with the very configuration that finds the planted faults."""

from __future__ import annotations

import os
from collections import defaultdict

import pytest
from tokenizers import Tokenizer

from gptq_diff.models.build import build_model
from tests.faults import runner
from tests.faults.conftest import VARIANTS
from tests.faults.healthy import prompts

BACKENDS = tuple(runner.KERNELS)


def worst_share(model, tmp_path, backends=BACKENDS, new_tokens=3):
    """Largest share of the threshold per path over all prompts; fails on any finding."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    captures = {}
    for dtype in ("float32", "float16"):
        host = runner.engine(model, dtype)
        vocabulary = host._model.config.vocab_size
        for backend in backends:
            kernel, wanted = runner.KERNELS[backend]
            if wanted != dtype:
                continue
            for i, ids in enumerate(prompts(tokenizer, vocabulary)):
                out = tmp_path / backend / str(i)
                captures[backend, str(i)] = runner.capture(host, kernel, ids, out, new_tokens=new_tokens)
    shares = defaultdict(float)
    for key, judged in runner.judge(captures, model).items():
        for j in judged:
            assert j.kind == "ok", (key, j)
            shares[j.path] = max(shares[j.path], j.excess)
    return dict(shares)


def show(record_property, name, shares):
    words = ", ".join(f"{path} {share:.2f}" for path, share in sorted(shares.items()))
    record_property(name, words)
    print(f"largest share of the threshold, {name}: {words}")  # noqa: T201  pytest -s shows how near the healthy ones come


def test_there_are_fifty_prompts(tiny_models):
    model = tiny_models["4bit"]
    made = prompts(Tokenizer.from_file(str(model / "tokenizer.json")), 512)
    lengths = [len(ids) for ids in made]
    assert len(made) == 50 and min(lengths) == 1 and max(lengths) == 200 and len(set(map(tuple, made))) == 50


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_false_alarm_on_tiny_qwen2(tiny_models, variant, tmp_path, record_property):
    show(record_property, variant, worst_share(tiny_models[variant], tmp_path))


@pytest.mark.slow
@pytest.mark.skipif("GPTQ_DIFF_SLOW" not in os.environ, reason="takes minutes: set GPTQ_DIFF_SLOW=1")
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_false_alarm_on_smollm2(backend, tmp_path, record_property):
    model = build_model("smollm2")
    show(record_property, f"smollm2 {backend}", worst_share(model, tmp_path, (backend,), new_tokens=2))
