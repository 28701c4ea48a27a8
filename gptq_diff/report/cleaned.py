"""A record with every string in it made fit to be shown: names and texts come from models, prompts and other people."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, Callable, TypeVar

from gptq_diff.text import clean

T = TypeVar("T")


def cleaned(value: T, tidy: Callable[[str], str] = clean) -> T:
    """The same record, tuple or mapping with `tidy` applied to every string, keys included."""
    return _cleaned(value, tidy)  # type: ignore[no-any-return]


def _cleaned(value: Any, tidy: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return tidy(value)
    if isinstance(value, tuple):
        return tuple(_cleaned(v, tidy) for v in value)
    if isinstance(value, dict):
        return {_cleaned(k, tidy): _cleaned(v, tidy) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _cleaned(getattr(value, f.name), tidy) for f in fields(value)})
    return value
