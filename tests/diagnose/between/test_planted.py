"""Faults between linears: the interval is named, the linears are not blamed, and what was planted is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gptq_diff.exit_codes import exit_code
from gptq_diff.session.again import compare_again
from tests.diagnose.between.planted import BLOCK, PROMPT, only, outcome, patched, without_residual
from tests.engines.models import Tensors, edited
from tests.session.in_process import asked, result, run

pytestmark = pytest.mark.usefixtures("here")


def norm_weight(tensors: Tensors) -> None:
    tensors[f"{BLOCK}.post_attention_layernorm.weight"][17] *= 1.25


def embedding(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"][60] = tensors["model.embed_tokens.weight"][60].flip(0)


def head(tensors: Tensors) -> None:
    tensors["lm_head.weight"][5] *= 1.5


def last_norm(tensors: Tensors) -> None:
    tensors["model.norm.weight"][:7] *= 2


BYTES: dict[str, tuple[Any, dict[str, object], str, str, str]] = {
    "norm weight": (norm_weight, {}, "norm", f"{BLOCK}.mlp.gate_proj", "at channel 17 (the checkpoint has"),
    "embedding": (embedding, {}, "embedding", "model.layers.0.self_attn.q_proj", "in the same rows"),
    "lm_head": (head, {}, "lm_head", "lm_head", "token 5's is"),
    "last norm": (last_norm, {}, "norm", "lm_head", "7 of its 128 channels"),
    "rotary base": (None, {"rope_theta": 10000.0}, "rotary", "model.layers.0.self_attn.o_proj", "base of 10,000"),
    "odd base": (None, {"rope_theta": 333000.0}, "rotary", "model.layers.0.self_attn.o_proj", "base of about 330,000"),
    "eps": (None, {"rms_norm_eps": 1e-2}, "norm", "model.layers.0.self_attn.q_proj", "an eps of 0.01"),
    "gelu": (None, {"hidden_act": "gelu"}, "activation", "model.layers.0.mlp.down_proj", "gelu(gate) * up"),
}


@pytest.mark.parametrize("fault", BYTES)
@pytest.mark.parametrize("backend", ["hf-fp16", "sim-exllama"])
def test_in_the_checkpoint(small_model: Path, tmp_path: Path, fault: str, backend: str) -> None:
    """A tensor or a setting of the loaded copy differs from the judge's: place and interval are exact."""
    change, config, name, layer, told = BYTES[fault]
    if "rope_theta" in config:
        settings = json.loads((small_model / "config.json").read_text())
        assert settings["rope_theta"] == 1e6
    damaged = edited(small_model, tmp_path / "damaged", change or (lambda _: None), **config)
    found = outcome(damaged, small_model, tmp_path / "run", backend)
    assert found.first_bad is not None
    assert (found.status, found.first_bad.layer, found.first_bad.path) == ("diverged", layer, name)
    finding = found.findings[0]
    assert (finding.cause, finding.layer, finding.confidence) == ("outside-linears", layer, 1.0)
    assert f"the interval is {name}" in finding.evidence
    assert told in finding.summary
    if fault != "embedding":  # another token's embedding can make a massive activation, at which sums overflow
        assert (found.bad_layers, found.layers.compared) == (0, 14)  # the linears are judged as ever
        only(found)


def scaled(model: Any) -> None:
    model.model.layers[1].self_attn.scaling = 0.125


PATCHES = {
    "scale": (scaled, "attention", f"{BLOCK}.self_attn.o_proj", "scores times 0.125"),
    "residual": (
        lambda model: without_residual(model, 1), "residual", f"{BLOCK}.mlp.gate_proj",
        f"the residual before {BLOCK}.self_attn.o_proj was dropped",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", PATCHES)
def test_in_the_engine(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """What a loaded model computes otherwise, once, with every weight as it should be."""
    change, name, layer, told = PATCHES[fault]
    patched(monkeypatch, change)
    found = outcome(small_model, small_model, tmp_path / "run")
    assert found.first_bad is not None
    assert (found.status, found.first_bad.layer, found.first_bad.path) == ("diverged", layer, name)
    assert told in only(found).summary


def test_the_report_says_it(small_model: Path, tmp_path: Path) -> None:
    """Verdict, exit code and layer are of the interval; the reference agrees."""
    damaged = edited(small_model, tmp_path / "damaged", norm_weight)
    report = run(asked(damaged, "hf-fp16", (PROMPT,), small_model), tmp_path / "run")
    assert exit_code(report) == 1
    assert report.verdict.layer == f"{BLOCK}.mlp.gate_proj"
    assert f"The norm before {BLOCK}.mlp.gate_proj is the first to break on hf-fp16" in report.verdict.summary
    assert result(report, "hf-fp32").status == "agree"


def test_a_sum_beyond_the_dtype(small_model: Path, tmp_path: Path) -> None:
    """The residual stream itself can pass 65504: the format's limit, told as that."""

    def large(tensors: Tensors) -> None:
        table = tensors["model.embed_tokens.weight"].float()
        table[PROMPT[0]] = 65000.0
        tensors["model.embed_tokens.weight"] = table.half()
        name = "model.layers.0.self_attn.o_proj.scales"
        tensors[name] = tensors[name] * 0 + 20

    damaged = edited(small_model, tmp_path / "damaged", large)
    found = outcome(damaged, damaged, tmp_path / "run")
    assert found.first_bad is not None
    assert (found.status, found.first_bad.path) == ("overflow", "residual")
    assert found.findings[0].cause == "result-overflow"


def test_nan_that_arises_between_linears(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN where everything before is finite is `nan-input`, at the interval that made it."""

    def spoil(model: Any) -> None:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[0, 2, 5] = float("nan")
            return output

        model.model.layers[1].post_attention_layernorm.register_forward_hook(hook)

    patched(monkeypatch, spoil)
    found = outcome(small_model, small_model, tmp_path / "run", max_new_tokens=1)
    assert found.first_bad is not None
    assert (found.status, found.first_bad.path, found.first_bad.first_index) == ("nan", "norm", (2, 5))
    assert [f.cause for f in found.findings] == ["nan-input"]


def test_of_a_long_prompt_some_rows_are_judged(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN in a row that is none of these is found all the same, at its place in the prompt."""

    def spoil(model: Any) -> None:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[0, 101, 5] = float("nan")
            return output

        model.model.layers[1].post_attention_layernorm.register_forward_hook(hook)

    long = (510, *(i % 500 for i in range(3, 300)))
    sound = result(run(asked(small_model, "hf-fp16", (long,), max_new_tokens=2), tmp_path / "sound"), "hf-fp16")
    assert sound.intervals is not None
    assert (sound.status, sound.intervals.compared, sound.intervals.skipped) == ("agree", 9, ())
    patched(monkeypatch, spoil)
    found = result(run(asked(small_model, "hf-fp16", (long,), max_new_tokens=1), tmp_path / "run"), "hf-fp16")
    assert found.first_bad is not None
    assert (found.status, found.first_bad.path, found.first_bad.first_index) == ("nan", "norm", (101, 5))


def test_what_was_left_out_keeps_its_judgement(small_model: Path, tmp_path: Path) -> None:
    """With --capture stats the tensors around the bad interval stay, and judging again says the same."""
    damaged = edited(small_model, tmp_path / "damaged", norm_weight)
    wanted = asked(damaged, "hf-fp16", (PROMPT,), small_model, capture="stats")
    report = run(wanted, tmp_path / "run")
    assert compare_again(tmp_path / "run", None, None, allow_skip=False, say=lambda _: None) == report
