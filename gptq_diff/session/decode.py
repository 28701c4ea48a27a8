"""Generated ids back to text, for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from gptq_diff.text import clean


class Decoder:
    """The checkpoint's tokenizer, if it has a tokenizer.json that can be read; loaded at the first use.

    known: ids -> text that an earlier report gave, for machines without the checkpoint.
    """

    def __init__(self, model_dir: Path | None, known: Mapping[tuple[int, ...], str] | None = None) -> None:
        self._model_dir = model_dir
        self._known = known or {}

    def text(self, tokens: tuple[int, ...]) -> str | None:
        """The text with special tokens shown and control characters taken out; None without a tokenizer."""
        if self._tokenizer is None:
            return self._known.get(tokens)
        return clean(str(self._tokenizer.decode(list(tokens), skip_special_tokens=False)))

    def single_token(self, text: str) -> int | None:
        """The id of a text that is one token; None where it is not, or there is no tokenizer."""
        ids = [] if self._tokenizer is None else self._tokenizer.encode(text, add_special_tokens=False).ids
        return int(ids[0]) if len(ids) == 1 else None

    @cached_property
    def _tokenizer(self) -> Any:
        file = self._model_dir / "tokenizer.json" if self._model_dir is not None else None
        if file is None or not file.is_file():
            return None
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(file))
        # Broad for a reason: tokenizers raises bare Exception for a file it cannot read. The texts are for people
        # alone (prompts given as token ids need no tokenizer), so a damaged one must not cost the run its report.
        except Exception:
            return None
