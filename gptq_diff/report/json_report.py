"""report.json: the report record as the contract spells it. Standard library only."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from gptq_diff.errors import CaptureError
from gptq_diff.records import Report, SkippedLayer
from gptq_diff.whole_file import write_whole

SCHEMA_VERSION = 1
SPELT: dict[tuple[object, str], str] = {(SkippedLayer, "name"): "layer"}
"""Fields that report.json calls otherwise than the record does."""


def to_json(report: Report) -> str:
    """The report as JSON text, in ASCII, so that no locale can fail to print it and no terminal obeys what is in it.

    A number that JSON cannot hold (NaN, inf) would be an error of ours.
    """
    return json.dumps(_plain(report), indent=2, allow_nan=False)


def write_report(report: Report, path: Path) -> None:
    """Write report.json by rename."""
    write_whole(path, to_json(report) + "\n")


def read_report(path: Path) -> Report:
    """The report in that file; CaptureError when it is missing or not one of ours."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"its schema_version is not {SCHEMA_VERSION}")
        report = _build(Report, raw, "report")
    except FileNotFoundError:
        raise CaptureError(f"{path} is missing: the run was not finished", "run `gptq-diff compare` on it") from None
    except (ValueError, TypeError) as e:
        raise CaptureError(f"{path} is not a report of this version: {e}", "run `gptq-diff compare` on it") from e
    return typing.cast(Report, report)


def _spelt(kind: object, field: str) -> str:
    return SPELT.get((kind, field), field)


def _plain(value: Any) -> Any:
    """Dataclasses as objects and tuples as arrays, in the contract's words."""
    if is_dataclass(value):
        return {_spelt(type(value), f.name): _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return value


def _build(kind: Any, value: Any, where: str) -> Any:
    """Rebuild frozen dataclasses, tuples and None from plain JSON, by the fields' own types; else TypeError."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _build(next(a for a in args if a is not type(None)), value, where)
    if is_dataclass(kind):
        _expect(dict, value, where)
        hints = typing.get_type_hints(kind)
        spelt = {f.name: _spelt(kind, f.name) for f in fields(kind)}
        missing = sorted(spelt[f.name] for f in fields(kind) if f.default is MISSING and spelt[f.name] not in value)
        if missing:
            raise TypeError(f"{where} lacks {', '.join(missing)}")
        there = {name: key for name, key in spelt.items() if key in value}  # what is new may be absent from old reports
        return kind(**{name: _build(hints[name], value[key], f"{where}.{key}") for name, key in there.items()})  # type: ignore[operator]
    if origin is tuple:
        _expect(list, value, where)
        inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        if len(inner) != len(value):
            raise TypeError(f"{where} has {len(value)} entries, not {len(inner)}")
        return tuple(_build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(inner, value)))
    if origin is dict:
        _expect(dict, value, where)
        return {key: _build(args[1], v, f"{where}.{key}") for key, v in value.items()}
    _expect((int, float) if kind is float else kind, value, where)
    return value


def _expect(kind: Any, value: Any, where: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{where} is {type(value).__name__}")
