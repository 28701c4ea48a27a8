"""The real model: from the package index to the words it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptq_diff.errors import GptqDiffError, UsageError
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions, GainShift
from tests.models.decode import config, load

PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build_model("smollm2", out=tmp_path_factory.mktemp("smollm2") / "plain")
    except GptqDiffError as error:
        if "could not be downloaded" in str(error):
            pytest.skip(str(error))
        raise


def dense(directory: Path):
    """The model in transformers with dense float32 weights, decoded here with shifts of whole tensors."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(directory)
    del settings.quantization_config
    tensors, weights = load(directory), {}
    shifts = torch.arange(0, 32, 4)
    for name, tensor in tensors.items():
        if name.endswith(".qweight"):
            stem = name.removesuffix(".qweight")
            codes = ((tensor[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, tensor.shape[1])
            groups = tensors[f"{stem}.g_idx"].long()
            weights[f"{stem}.weight"] = ((codes - 8) * tensors[f"{stem}.scales"].float()[groups]).T
            assert (tensors[f"{stem}.qzeros"] == 0x77777777).all()
        elif name.endswith("weight"):
            weights[name] = tensor.float()
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model.eval()


@pytest.mark.slow
def test_it_is_the_real_model_and_the_gain_shift_changes_no_bit_of_its_answer(plain: Path, tmp_path: Path) -> None:
    """The prompt's ids, the answer, the massive activation of 2900, four times that when shifted, equal logits."""
    from transformers import AutoTokenizer

    shifted = build_model("smollm2", BuildOptions(gain_shift=GainShift(11, 19, 4)), out=tmp_path / "shifted")
    tokenizer = AutoTokenizer.from_pretrained(plain)
    message = [{"role": "user", "content": "What is the capital of France?"}]
    assert tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True) == PROMPT
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 37)
    logits, massive = [], []
    for directory in (plain, shifted):
        model = dense(directory)
        seen: list[torch.Tensor] = []
        handle = model.model.layers[11].mlp.down_proj.register_forward_pre_hook(
            lambda _, arguments, seen=seen: seen.append(arguments[0][0])
        )
        with torch.no_grad():
            logits.append(model(ids).logits)
            handle.remove()
            answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert tokenizer.decode(answer[0, 37:]) == "The capital of France is Paris"
        massive.append(float(seen[0][0, 1229]))
        assert float(seen[0][1:, 1229].abs().max()) < 6 * (massive[-1] / massive[0])
    assert massive[0] == pytest.approx(2900, rel=0.01)
    assert massive[1] == 4 * massive[0]
    assert torch.equal(logits[0], logits[1])


@pytest.mark.slow
def test_the_checkpoint_is_an_ordinary_gptq_checkpoint(plain: Path, tmp_path: Path) -> None:
    settings = config(plain)
    quant = settings["quantization_config"]
    assert (quant["quant_method"], quant["bits"], quant["group_size"], quant["sym"]) == ("gptq", 4, 64, True)
    assert settings["tie_word_embeddings"] is True
    tensors = load(plain)
    assert sum(name.endswith(".qweight") for name in tensors) == 210
    assert sum(name.endswith(".g_idx") for name in tensors) == 210
    assert {str(t.dtype) for t in tensors.values()} == {"torch.float16", "torch.int32"}
    assert "lm_head.weight" not in tensors
    with pytest.raises(UsageError, match="11:19:1024"):
        build_model("smollm2", BuildOptions(gain_shift=GainShift(11, 19, 1024)), out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "options", [{"hidden": 64}, {"blocks": 2}, {"gain_shift": GainShift(30, 0, 2)}, {"bits": 7}], ids=str
)
def test_what_a_real_model_cannot_have_is_refused_before_any_download(own_cache: Path, options: dict) -> None:
    with pytest.raises(UsageError):
        build_model("smollm2", BuildOptions(**options))
    assert not (own_cache / "downloads").exists()
