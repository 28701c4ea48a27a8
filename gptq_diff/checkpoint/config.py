"""What a checkpoint's JSON says about its quantisation; nothing here reads a tensor or imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gptq_diff.checkpoint.jsonfile import read_object
from gptq_diff.checkpoint.module_quant import (
    SETTINGS,
    LayerQuant,
    Override,
    parse_bits,
    parse_flag,
    parse_group_size,
    parse_overrides,
)
from gptq_diff.errors import CheckpointError

_FORMATS = ("gptq", "gptq_v2")


@dataclass(frozen=True)
class QuantConfig:
    """The quantisation of a checkpoint.

    base: what holds for every module without an override.
    format: "gptq" (v1: zero = stored + 1) or "gptq_v2" (zero = stored).
    overrides: in the file's order; the first that matches decides, as in GPTQModel and vLLM.
    source: the file the values come from, for messages.
    """

    base: LayerQuant
    format: str
    overrides: tuple[Override, ...]
    source: str

    def for_module(self, name: str) -> LayerQuant | None:
        """The quantisation of one module, or None when a `-:` key says that it is not quantised."""
        for override in self.overrides:
            if override.pattern.match(name) is None:
                continue
            if override.excluded:
                return None
            given = {field: getattr(override, field) for field in SETTINGS if getattr(override, field) is not None}
            return replace(self.base, **given)
        return self.base


def find_quantisation(directory: Path, config: Mapping[str, object]) -> tuple[Mapping[str, object], str]:
    """The raw quantisation settings and the file they stand in: config.json first, as vLLM and transformers read it."""
    text_config = config.get("text_config")
    for holder in (config, text_config if isinstance(text_config, Mapping) else {}):
        for key in ("quantization_config", "compression_config"):
            raw = holder.get(key)
            if isinstance(raw, Mapping):
                return raw, "config.json"
    legacy = directory / "quantize_config.json"
    if legacy.is_file():
        return read_object(legacy), "quantize_config.json"
    raise CheckpointError(
        f"{directory} is not a GPTQ checkpoint: config.json has no quantization_config and there is no "
        "quantize_config.json; give a model that was quantised with GPTQ"
    )


def parse_quantisation(raw: Mapping[str, object], source: str) -> QuantConfig:
    """The checked settings; anything that is not plain GPTQ is refused by name."""
    _refuse_other_methods(raw, source)
    stored_format = raw.get("checkpoint_format", raw.get("format", "gptq"))
    if raw.get("is_marlin_format") is True:
        stored_format = "marlin"
    if stored_format not in _FORMATS:
        raise CheckpointError(
            f"{source} says checkpoint_format {stored_format!r}, and only {' and '.join(_FORMATS)} can be read; "
            "use the checkpoint before it was repacked for one kernel"
        )
    if "bits" not in raw or "group_size" not in raw:
        missing = "bits" if "bits" not in raw else "group_size"
        raise CheckpointError(f"{source} lacks {missing!r} in its quantisation settings; restore the original file")
    base = LayerQuant(
        bits=parse_bits(raw["bits"], source),
        group_size=parse_group_size(raw["group_size"], source),
        sym=parse_flag(raw.get("sym", True), "sym", source),
        desc_act=parse_flag(raw.get("desc_act", False), "desc_act", source),
    )
    return QuantConfig(base, str(stored_format), parse_overrides(raw.get("dynamic"), source), source)


def disagreements(directory: Path, quantisation: QuantConfig) -> tuple[str, ...]:
    """Where quantize_config.json, which AutoGPTQ reads, differs from the config.json that was used; a sentence each."""
    legacy = directory / "quantize_config.json"
    if quantisation.source == legacy.name or not legacy.is_file():
        return ()
    try:
        other = parse_quantisation(read_object(legacy), legacy.name)
    except CheckpointError as error:
        return (f"engines that read {legacy.name} go wrong: {error}",)
    pairs = [(field, getattr(quantisation.base, field), getattr(other.base, field)) for field in SETTINGS]
    pairs.append(("checkpoint_format", quantisation.format, other.format))
    return tuple(
        f"{legacy.name} says {field} {theirs} and {quantisation.source} {ours}: engines that read the former go wrong"
        for field, ours, theirs in pairs
        if ours != theirs
    )


def _refuse_other_methods(raw: Mapping[str, object], source: str) -> None:
    method = raw.get("quant_method", raw.get("method"))
    if method is None:
        if "w_bit" in raw or "zero_point" in raw:
            method = "awq"
        elif "config_groups" in raw:
            method = "compressed-tensors"
        else:
            method = "gptq"  # AutoGPTQ before 0.7 wrote no quant_method
    if str(method).lower() != "gptq":
        raise CheckpointError(
            f"{source} says quant_method {method!r}, and only 'gptq' can be read: {_why_not(str(method).lower())}; "
            "give a GPTQ version of the model"
        )


def _why_not(method: str) -> str:
    if "awq" in method:
        return "AWQ packs codes along N and in another order"
    if "compressed" in method:
        return "compressed-tensors stores weight_packed in a layout of its own"
    if "round" in method:
        return "AutoRound has packing formats of its own (export it with format auto_gptq)"
    return "its layout is another one"
