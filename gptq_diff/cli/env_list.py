"""`gptq-diff env list`."""

from __future__ import annotations

from pathlib import Path

from gptq_diff.cli.output import console, print_json
from gptq_diff.environments.find import Environment, environments_in, user_folder
from gptq_diff.environments.recipes import names
from gptq_diff.hosts import versions_in


def list_environments(folder: Path | None, *, as_json: bool) -> None:
    """Every environment of the folder: finished or not, what is in it, its size."""
    place = (folder or user_folder()).absolute()
    found = environments_in(place)
    if as_json:
        listed = [
            {
                "name": one.name, "path": str(one.directory), "python": str(one.python), "ready": one.state.ready,
                "outdated": one.outdated, "steps": one.state.steps, "done": one.state.done,
                "versions": versions_in(one), "bytes": one.state.size, "seconds": round(one.state.seconds, 1),
            }
            for one in found
        ]  # fmt: skip
        print_json({"schema_version": 1, "folder": str(place), "environments": listed, "recipes": names()})
        return
    from rich.table import Table
    from rich.text import Text

    screen = console()
    if found:
        table = Table("environment", "state", "versions", "size", box=None, pad_edge=False)
        for one in found:
            versions = ", ".join(f"{name} {version}" for name, version in versions_in(one).items())
            size = f"{one.state.size / 1e9:.1f} GB" if one.state.size is not None else ""
            table.add_row(one.name, _state(one), versions, size)
        screen.print(table)
    screen.print(Text(f"{'in' if found else 'none in'} {place}"), soft_wrap=True)
    screen.print(Text(f"gptq-diff env create makes {', '.join(names())}"), soft_wrap=True)


def _state(environment: Environment) -> str:
    state = environment.state
    if not state.ready:
        return f"unfinished, {state.done} of {state.steps} steps"
    return "ready, of another version of its recipe" if environment.outdated else "ready"
