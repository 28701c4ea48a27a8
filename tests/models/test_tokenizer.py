from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from gptq_diff.models.build import build_model
from gptq_diff.models.qwen_tokenizer import openers, qwen_tokenizer
from gptq_diff.models.tokenizer_files import write_tokenizer


@pytest.fixture
def directory(own_cache: Path) -> Path:
    return build_model("tiny-qwen2")


def test_token_0_is_an_exclamation_mark(directory: Path) -> None:
    """As in Qwen, where a collapsed model answers `!!!!`."""
    assert AutoTokenizer.from_pretrained(directory).decode([0]) == "!"


def test_the_chat_prompt_is_qwens(directory: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    own = tokenizer.apply_chat_template([{"role": "system", "content": "S"}, *messages], tokenize=False)
    assert own == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


def test_a_short_chat_prompt_stays_below_the_fast_paths_limit(directory: Path) -> None:
    """50 rows: short prompts must be short in this small vocabulary too."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    message = [{"role": "user", "content": "What is the capital of France?"}]
    assert len(tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]) < 40


@pytest.mark.parametrize("text", ["Hello, world!", "2024: 3.14", "naïve 你好 🙂", "a\r\n\tb   c", "I'll don't", " x"])
def test_texts_come_back(directory: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < 512


def test_digits_are_single_tokens_as_in_qwen(directory: Path) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.encode("12345").tokens == list("12345")


def test_special_tokens_can_stand_at_real_qwens_ids(tmp_path: Path) -> None:
    """The 32B's embedding has 152064 rows; <|im_start|> is 151644 there."""
    write_tokenizer(tmp_path, qwen_tokenizer(151643, 32768))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("<|im_start|>user\nHi<|im_end|>")["input_ids"]
    assert ids[0] == 151644
    assert ids[-1] == 151645
    assert tokenizer.eos_token_id == 151645
    assert tokenizer.decode(ids) == "<|im_start|>user\nHi<|im_end|>"


def test_openers_begin_prompts_and_do_not_follow_them() -> None:
    data = qwen_tokenizer(509, 32768)
    ids = set(openers(data))
    assert data.vocabulary["<|im_start|>"] in ids
    assert data.vocabulary["What"] in ids
    for token in ("<|im_end|>", "system", "user", "assistant", "Ġthe", "Ċ"):
        assert data.vocabulary[token] not in ids
