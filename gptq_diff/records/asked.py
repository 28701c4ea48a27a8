"""What is asked: prompts, and the presets that --backends names."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Prompt:
    """One prompt as every backend gets it.

    id: the entry's own name, or `p1`, `p2`, ... in file order; used in paths, so [A-Za-z0-9._-] only.
    token_ids: what is fed to the model.
    text: the text that was tokenised (after the chat template); None for bare token ids.
    sha256: of the token ids, as little-endian int64.
    """

    id: str
    token_ids: tuple[int, ...]
    text: str | None
    sha256: str

    @property
    def tokens(self) -> int:
        """Number of token ids: M of the prefill."""
        return len(self.token_ids)


@dataclass(frozen=True)
class Preset:
    """One name a user can give to --backends.

    engine: who hosts the model ("transformers", "vllm", ...).
    kernel: kernel mode of that engine.
    dtype: of the skeleton (norms, attention, residual), "float16" or "float32".
    summary: one line for `gptq-diff backends`.
    requires: modules that the interpreter must have.
    route: which way in the engine is loaded for, where it has several; presets of one route can share a load.
    gpu: True when nothing but an NVIDIA GPU will do.
    """

    name: str
    engine: str
    kernel: str
    dtype: str
    summary: str
    requires: tuple[str, ...] = field(default=())
    route: str = ""
    gpu: bool = False


@dataclass(frozen=True)
class PromptInfo:
    """A prompt as reports show it."""

    id: str
    tokens: int
    sha256: str


def swept_prompt(prompt: str) -> str:
    """The id that was swept, in the id of one of its lengths: `p1` of `p1-t037`."""
    return prompt.rpartition("-t")[0]
