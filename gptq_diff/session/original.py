"""--original: the unquantised model beside the quantised one, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gptq_diff.checkpoint.plain import PlainCheckpoint, open_plain
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.errors import UsageError
from gptq_diff.presets import BackendRequest, preset_named
from gptq_diff.records import ORIGINAL, OriginalInfo

PRESET = "hf-original"
SAME = (
    "model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size",
)  # fmt: skip
"""Entries of config.json that quantising a model does not change."""


def with_original(
    requests: tuple[BackendRequest, ...], original: Path | None, *, named: bool
) -> tuple[BackendRequest, ...]:
    """The backends with hf-original last where --original is given, and without it where nobody asked.

    named: the requests come from --backends. UsageError where they name hf-original and there is no model for it.
    """
    there = any(r.preset.kernel == ORIGINAL for r in requests)
    if original is None:
        if there and named:
            raise UsageError(f"{PRESET} needs the unquantised model", "give its directory: --original DIR")
        return tuple(r for r in requests if r.preset.kernel != ORIGINAL)
    return requests if there else (*requests, BackendRequest(preset_named(PRESET)))


def check_reference(reference: str) -> None:
    """UsageError where the unquantised model is to be what kernels are compared with."""
    if preset_named(reference).kernel == ORIGINAL:
        raise UsageError(
            f"{reference} cannot be the reference: it runs another model than the other backends",
            "leave --reference out; the unquantised model is compared with hf-fp32",
        )


def check_original(checkpoint: Checkpoint, original: Path) -> None:
    """UsageError, one sentence, unless the quantised checkpoint can have been made from that model."""
    plain = open_plain(original)
    if plain.config.get("auto_map") and not checkpoint.trust_remote_code:
        raise UsageError(
            f"the model {original} brings code of its own (auto_map in config.json)",
            "read it, then --trust-remote-code",
        )
    why = _misfit(checkpoint, plain)
    if why is not None:
        raise UsageError(
            f"--original {plain.path} is not what --model {checkpoint.path} was made from: {why}",
            "give the unquantised model of the same name and size",
        )


def _misfit(checkpoint: Checkpoint, plain: PlainCheckpoint) -> str | None:
    for key in SAME:
        ours, theirs = _entry(checkpoint.config, key), _entry(plain.config, key)
        if ours is not None and theirs is not None and ours != theirs:
            return f"{key} is {theirs} there and {ours} in the quantised model"
    for spec in checkpoint.layers:
        shape, wanted = plain.shape(f"{spec.name}.weight"), (spec.out_features, spec.in_features)
        if shape is None:
            return f"it has no tensor {spec.name}.weight"
        if shape != wanted:
            return f"{spec.name}.weight has the shape {list(shape)} there, and the quantised linear {list(wanted)}"
    return None


def _entry(config: Mapping[str, object], key: str) -> object:
    """An entry of config.json, or of its text_config (multimodal wrappers); None where there is none."""
    inner = config.get("text_config")
    value = config.get(key)
    return inner.get(key) if value is None and isinstance(inner, Mapping) else value


def original_info(original: Path, *, full_hash: bool) -> OriginalInfo:
    """What the report says of it."""
    plain = open_plain(original)
    named = plain.config.get("architectures")
    first = named[0] if isinstance(named, list) and named else plain.config.get("model_type", "unknown")
    return OriginalInfo(str(plain.path), str(first), plain.fingerprint(full=full_hash))
