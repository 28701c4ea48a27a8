"""Where cases are found: those that come with gptq-diff by name, any other by its directory or file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gptq_diff
from gptq_diff.cases.case import Case
from gptq_diff.cases.read import FILE, read_case
from gptq_diff.errors import UsageError
from gptq_diff.suggest import nearest

_PACKAGE = Path(gptq_diff.__file__).parent


def shipped_folder() -> Path:
    """`cases/` of the checkout; of an installed wheel the copy that lies in the package."""
    installed = _PACKAGE / "cases" / "shipped"
    return installed if installed.is_dir() else _PACKAGE.parent / "cases"


def shipped_names() -> tuple[str, ...]:
    """Every case that comes with gptq-diff, in order of their names."""
    folder = shipped_folder()
    return tuple(sorted(entry.name for entry in folder.glob("*") if (entry / FILE).is_file()))


def find_case(named: str) -> Case:
    """A shipped case by its name, else the case.toml of that path; UsageError with the nearest name for neither."""
    known = shipped_names()
    if named in known:
        return read_case(shipped_folder() / named)
    path = Path(named).expanduser()
    if path.exists():
        return read_case(path)
    raise UsageError(
        f"there is no case {named!r}{nearest(named, known)}",
        "give a name of `gptq-diff cases list`, a directory with a case.toml, or a case.toml",
    )


def find_cases(named: Sequence[str]) -> tuple[Case, ...]:
    """Those cases, or all that are shipped where none is named; a directory of cases stands for all in it.

    UsageError where two have one name, since their outcomes are told apart by it.
    """
    found: dict[str, Case] = {}
    for one in named or shipped_names():
        for case in _in_directory(one) or (find_case(one),):
            if case.name in found and found[case.name].file != case.file:
                raise UsageError(f"two cases are called {case.name}: {found[case.name].file} and {case.file}",
                                 "rename one of them")  # fmt: skip
            found[case.name] = case
    return tuple(found.values())


def _in_directory(named: str) -> tuple[Case, ...]:
    """All cases of a directory that is none itself."""
    folder = Path(named).expanduser()
    if named in shipped_names() or not folder.is_dir() or (folder / FILE).is_file():
        return ()
    return tuple(read_case(entry) for entry in sorted(folder.iterdir()) if (entry / FILE).is_file())
