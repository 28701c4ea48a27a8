"""The checkpoint's own tokenizer, through transformers, from its directory alone."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from gptq_diff.errors import PromptError
from gptq_diff.prompts.entries import PromptEntry

# Any of these holds a vocabulary. tokenizer_config.json alone does not: transformers would build an empty one from it.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.model", "*.tiktoken")


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: str | dict[str, str] | None

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]:
        """Text to ids."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """A chat to the text that the model is fed."""


def load_tokenizer(entry: PromptEntry, model_dir: Path, *, trust_remote_code: bool) -> Tokenizer:
    """The checkpoint's own tokenizer, from its directory alone; `entry` is the prompt that needs it."""
    if not any(path.is_file() for pattern in _VOCABULARIES for path in model_dir.glob(pattern)):
        raise entry.error(
            f"is text, and {model_dir} has no tokenizer",
            'Add the tokenizer\'s files to the checkpoint, or give the prompt as {"token_ids": [...]}.',
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(model_dir), local_files_only=True, trust_remote_code=trust_remote_code
        )
    # Broad for a reason: tokenizers raises bare Exception for a malformed tokenizer.json, and a damaged
    # tokenizer_config.json shows as TypeError, KeyError, AttributeError and more from inside transformers.
    except Exception as error:
        hint = 'Repair its tokenizer files, or give prompts as {"token_ids": [...]}.'
        if "trust_remote_code" in str(error):
            hint = "It comes with code of its own; --trust-remote-code runs that code."
        raise PromptError(f"the tokenizer of {model_dir} cannot be loaded: {reason_of(error)}", hint) from error
    return cast("Tokenizer", tokenizer)


def reason_of(error: Exception) -> str:
    """The first line of an error that is not ours, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
