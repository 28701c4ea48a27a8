"""A byte-level BPE tokenizer as the files every release of transformers, and so every engine, can read.

transformers 5 saves a class name that transformers 4 does not know; `PreTrainedTokenizerFast` is known to both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers


@dataclass(frozen=True)
class TokenizerData:
    """All there is to a byte-level BPE tokenizer with a chat template.

    vocabulary: token -> id, in the bytes-as-characters alphabet of GPT-2; holds the special tokens too.
    merges: pairs, best first.
    special: tokens that are never split and never shown.
    split: regular expression of the pieces that merges never cross; None for GPT-2's own.
    nfc: normalise the text to Unicode NFC first.
    bos, eos, pad, unk: special tokens by role; None for none. No token is added to a text on its own.
    model_max_length: the model's context in tokens.
    """

    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]
    special: list[str]
    chat_template: str
    split: str | None
    nfc: bool
    bos: str | None
    eos: str
    pad: str
    unk: str | None
    model_max_length: int


def build_tokenizer(data: TokenizerData) -> Tokenizer:
    """The tokenizer as an object of the `tokenizers` package."""
    from tokenizers import Regex

    tokenizer = Tokenizer(models.BPE(vocab=data.vocabulary, merges=data.merges))
    if data.nfc:
        tokenizer.normalizer = normalizers.NFC()
    if data.split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        pieces = pre_tokenizers.Split(Regex(data.split), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in data.special])
    return tokenizer


def write_tokenizer(directory: Path, data: TokenizerData) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja."""
    build_tokenizer(data).save(str(directory / "tokenizer.json"), pretty=False)
    roles = {"bos_token": data.bos, "eos_token": data.eos, "pad_token": data.pad, "unk_token": data.unk}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": data.model_max_length,
        "chat_template": data.chat_template,
        **roles,
    }
    _write_json(directory / "tokenizer_config.json", config)
    _write_json(directory / "special_tokens_map.json", {role: token for role, token in roles.items() if token})
    (directory / "chat_template.jinja").write_text(data.chat_template, encoding="utf-8")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
