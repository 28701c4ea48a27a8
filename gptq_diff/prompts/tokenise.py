"""Entries to token ids, with the checkpoint's own tokenizer and chat template; once, for every backend.

A plain string becomes one user message where the model has a chat template, because that is how the model is used;
`--no-chat-template` feeds the bare text. Messages always go through the template.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

from gptq_diff.errors import UsageError
from gptq_diff.prompts.entries import Message, PromptEntry
from gptq_diff.prompts.tokenizer import Tokenizer, load_tokenizer, reason_of
from gptq_diff.records import Prompt


def tokenise(
    entries: Sequence[PromptEntry],
    model_dir: Path,
    *,
    system: str | None,
    chat_template: bool,
    trust_remote_code: bool,
    vocab_size: int,
    context_length: int | None,
) -> tuple[Prompt, ...]:
    """The prompts, in order. The tokenizer is loaded only if an entry holds text.

    system: text of a system message put before every chat; None for none.
    chat_template: False feeds plain strings as they are.
    vocab_size: rows of the model's embedding: ids from 0 up to it, exclusive.
    context_length: greatest number of tokens the model takes; None where the checkpoint does not say.

    PromptError names file, line and reason.
    """
    tokenizer: Tokenizer | None = None
    if system is not None and all(entry.token_ids is not None for entry in entries):
        raise UsageError("--system has no prompt to go before: all of them are token ids", "Leave --system out.")
    prompts = []
    for entry in entries:
        text = None
        token_ids = entry.token_ids
        if token_ids is None:
            tokenizer = tokenizer or load_tokenizer(entry, model_dir, trust_remote_code=trust_remote_code)
            text, token_ids = _encode(entry, tokenizer, system=system, chat_template=chat_template)
        _check(entry, token_ids, vocab_size, context_length)
        prompts.append(Prompt(entry.id, token_ids, text, fingerprint(token_ids)))
    return tuple(prompts)


def fingerprint(token_ids: Sequence[int]) -> str:
    """sha256, in hex, of the ids as little-endian int64."""
    return hashlib.sha256(struct.pack(f"<{len(token_ids)}q", *token_ids)).hexdigest()


def _encode(
    entry: PromptEntry, tokenizer: Tokenizer, *, system: str | None, chat_template: bool
) -> tuple[str, tuple[int, ...]]:
    """The text that is fed, and its ids."""
    if entry.text is not None and not (chat_template and tokenizer.chat_template):
        if system is not None:
            why = "the model has no chat template" if chat_template else "--no-chat-template is given"
            raise entry.error(f"cannot take --system: {why}", "Leave --system out, or write it into the prompt.")
        # Special tokens (<s>, [CLS]) as the tokenizer adds them to bare text.
        return entry.text, tuple(tokenizer.encode(entry.text, add_special_tokens=True, verbose=False))
    messages = _chat(entry, tokenizer, system=system, chat_template=chat_template)
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise entry.error(
            f"is refused by the model's chat template: {reason_of(error)}",
            "Change its messages, or give the text itself with --no-chat-template.",
        ) from error
    # The template writes the special tokens itself.
    return text, tuple(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _chat(entry: PromptEntry, tokenizer: Tokenizer, *, system: str | None, chat_template: bool) -> tuple[Message, ...]:
    messages = entry.messages
    if messages is None:
        assert entry.text is not None  # an entry holds exactly one of its three forms
        messages = (Message("user", entry.text),)
    elif not chat_template:
        raise entry.error(
            "holds messages, and --no-chat-template is given", "Leave the option out, or give plain text."
        )
    elif not tokenizer.chat_template:
        raise entry.error("holds messages, and the model has no chat template", "Give plain text or token ids.")
    if system is None:
        return messages
    if messages[0].role == "system":
        raise entry.error("begins with a system message, and --system gives another", "Leave one of the two out.")
    return (Message("system", system), *messages)


def _check(entry: PromptEntry, token_ids: tuple[int, ...], vocab_size: int, context_length: int | None) -> None:
    if not token_ids:
        raise entry.error("gives no tokens at all", "Write some text that the tokenizer knows.")
    for place, token in enumerate(token_ids):
        if not 0 <= token < vocab_size:
            hint = "The tokenizer does not belong to this model."
            if entry.token_ids is not None:
                hint = "Take the ids from this model's own tokenizer."
            raise entry.error(f"has the id {token} at place {place}; the vocabulary is 0 to {vocab_size - 1}", hint)
    if context_length is not None and len(token_ids) > context_length:
        raise entry.error(f"has {len(token_ids)} tokens; the model takes {context_length} at most", "Shorten it.")
