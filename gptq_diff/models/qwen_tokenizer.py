"""A small tokenizer of Qwen2's kind: its pre-tokenisation, its alphabet order (id 0 is "!"), ChatML, its system prompt.

Only the merges are our own (qwen_merges.txt, trained on a few sentences), so texts become other ids than real Qwen's.
What Qwen2's tokenizer does: https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct/blob/main/tokenizer.json
"""

from __future__ import annotations

from importlib import resources

from tokenizers import pre_tokenizers

from gptq_diff.models.tokenizer_files import TokenizerData

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SYSTEM_PROMPT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
ROLES = ("system", "user", "assistant")

# Contractions; a word with one leading mark; single digits; runs of marks; line ends; spaces.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer(first_special: int, context: int) -> TokenizerData:
    """The tokenizer with its three special tokens from id `first_special` on (509 leaves no gap after the merges)."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())  # by code point: "!" comes first
    text = resources.files("gptq_diff.models").joinpath("qwen_merges.txt").read_text(encoding="utf-8")
    merges = [(left, right) for left, right in (line.split(" ") for line in text.splitlines())]
    tokens += [left + right for left, right in merges]
    assert len(tokens) <= first_special
    vocabulary = {token: number for number, token in enumerate(tokens)}
    vocabulary.update({token: first_special + number for number, token in enumerate(SPECIAL)})
    return TokenizerData(
        vocabulary=vocabulary,
        merges=merges,
        special=list(SPECIAL),
        chat_template=_CHAT_TEMPLATE,
        split=_SPLIT,
        nfc=True,
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        unk=None,
        model_max_length=context,
    )


def openers(tokenizer: TokenizerData) -> list[int]:
    """The ids that a prompt can begin with: <|im_start|> and every token without a leading space or line end.

    The names of roles are left out, because they follow <|im_start|>.
    """
    vocabulary = tokenizer.vocabulary
    texts = [token for token in vocabulary if token not in SPECIAL and token not in ROLES]
    return sorted([vocabulary["<|im_start|>"], *(vocabulary[text] for text in texts if text[0] not in "ĠĊĉč")])
