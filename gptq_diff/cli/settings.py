"""What config files may give, read off the commands themselves, so that the two cannot drift apart."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from gptq_diff.config_file import Setting


def user_config(environment: Mapping[str, str]) -> Path:
    """The user's own config file; a relative $XDG_CONFIG_HOME is passed over, as its specification demands."""
    base = environment.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):  # noqa: PTH117  "" is no path
        base = os.path.expanduser("~/.config")  # noqa: PTH111  unlike Path's, it does not fail where there is no home
    return Path(base) / "gptq-diff" / "config.toml"


def settings_of(app: typer.Typer) -> dict[tuple[str, ...], dict[str, Setting]]:
    """Every command of the program with its options; commands of commands by the path that is typed."""
    found: dict[tuple[str, ...], dict[str, Setting]] = {}
    for command in app.registered_commands:
        if command.callback is not None:
            found[(command.name or command.callback.__name__.replace("_", "-"),)] = _options(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None and isinstance(group.name, str):
            below = settings_of(group.typer_instance)
            found.update({(group.name, *path): options for path, options in below.items()})
    return found


def _options(callback: Callable[..., Any]) -> dict[str, Setting]:
    found = {}
    for param, hint in get_type_hints(callback, include_extras=True).items():
        if get_origin(hint) is not Annotated:
            continue
        base, *extras = get_args(hint)
        for extra in extras:
            if isinstance(extra, OptionInfo):
                name = _long_name(extra) or param.replace("_", "-")
                found[name] = Setting(param, _kinds(name, base, extra))
    return found


def _long_name(option: OptionInfo) -> str | None:
    """`seed` for `--seed`, `sym` for `--sym/--no-sym`; None where the option has no name but its parameter's."""
    # Inside Annotated, Typer takes what stands first for a name too, although it is called `default`.
    for declared in (option.default, *(option.param_decls or ())):
        if isinstance(declared, str) and declared.startswith("--"):
            return declared.split("/")[0].removeprefix("--")
    return None


def _kinds(name: str, base: object, option: OptionInfo) -> tuple[type, ...]:
    if option.parser is not None:
        return (str, int)
    if get_origin(base) in (Union, types.UnionType):
        base = next(kind for kind in get_args(base) if kind is not type(None))
    for kind in (bool, int, float):
        if base is kind:
            return (kind,)
    return (str, list) if name == "backends" else (str,)
