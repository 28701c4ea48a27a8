"""`gptq-diff kernels build` and `fetch`: what was asked becomes packs, processes and lines on the terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from rich.text import Text

from gptq_diff.cli.output import console, print_json
from gptq_diff.errors import GptqDiffError, UsageError
from gptq_diff.releases import Release, release_named
from gptq_diff.session.loads import cache_dir
from gptq_diff.session.prepare import interpreter
from gptq_diff.stage import stage_package
from gptq_diff.text import one_line
from gptq_diff.upstream.build import How, Outcome, build_all
from gptq_diff.upstream.fetch import Where, pack_of
from gptq_diff.upstream.installer import installer_here
from gptq_diff.upstream.pack import read_pack
from gptq_diff.upstream.store import Store, user_store

_ARCH = re.compile(r"\d{1,2}\.\d[a-z]?", re.ASCII)


@dataclass(frozen=True)
class Asked:
    """The options of `kernels build`, as typed."""

    names: tuple[str, ...]
    sdist: Path | None
    sources: Path | None
    arch: str | None
    python: str | None
    jobs: int
    timeout: float | None


def build_and_show(asked: Asked, *, as_json: bool, quiet: bool) -> None:
    """One line a release; exit 3 where one could not be compiled."""
    if asked.arch is not None and _ARCH.fullmatch(asked.arch) is None:
        raise UsageError(f"--arch {asked.arch} is no compute capability", "write 8.0 or 9.0, for example")
    if asked.sdist is not None and asked.sources is not None:
        raise UsageError("--sdist and --sources are both given", "keep one of the two")
    python = Path(sys.executable) if asked.python is None else interpreter(asked.python)
    screen = console(quiet=quiet or as_json)

    def say(line: str) -> None:
        screen.print(Text(one_line(line)), soft_wrap=True)

    store = user_store()
    packs = _packs(asked.names, store, asked.sdist, asked.sources, say)
    how = How(python, stage_package(cache_dir()), asked.arch, asked.jobs, asked.timeout, dict(os.environ))
    outcomes = build_all(packs, store, how, lambda event: _tell(event, say))
    if as_json:
        print_json({"schema_version": 1, "releases": [_as_json(outcome) for outcome in outcomes]})
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    if len(failed) == 1:
        raise GptqDiffError(str(failed[0].failure), failed[0].hint)
    if failed:
        names = ", ".join(str(outcome.release) for outcome in failed)
        raise GptqDiffError(f"{len(failed)} of {len(outcomes)} releases were not compiled: {names}", failed[0].hint)


def fetch_and_show(names: Sequence[str], out: Path | None, sdist: Path | None, *, as_json: bool, quiet: bool) -> None:
    """One line a release: where its pack is, and how large."""
    screen = console(quiet=quiet or as_json)

    def say(line: str) -> None:
        screen.print(Text(one_line(line)), soft_wrap=True)

    store = user_store()
    listed = []
    for folder in _packs(names, store, sdist, None, say):
        pack, place = read_pack(folder), folder
        if out is not None:
            place = out / str(pack.release)
            _copy(folder, place)
        size = sum((place / path).stat().st_size for path in pack.files)
        listed.append({
            "release": str(pack.release), "folder": str(place.absolute()), "bytes": size, "digest": pack.digest,
            "sdist": pack.sdist, "sdist_sha256": pack.sdist_sha256,
        })  # fmt: skip
        say(f"{pack.release}: {len(pack.files)} files, {size / 1000:.0f} KB, in {place}")
    if as_json:
        print_json({"schema_version": 1, "packs": listed})


def _packs(
    names: Sequence[str], store: Store, sdist: Path | None, sources: Path | None, say: Callable[[str], None]
) -> list[Path]:
    releases = list(dict.fromkeys(release_named(name) for name in names))
    if sdist is not None and len(releases) > 1:
        raise UsageError("--sdist is one release's, and several are named", "name one release with --sdist")
    where = Where(sdist, sources, lambda: installer_here(Path(sys.executable), os.environ))
    return [pack_of(release, store, where, say) for release in releases]


def _copy(folder: Path, place: Path) -> None:
    """A pack to a place of the user's; one of the same release there is replaced, anything else is left alone."""
    pack = read_pack(folder)
    if place.exists() and not (place / "pack.json").is_file():
        raise UsageError(f"{place} exists and is no source pack", "move it away, or give another --out")
    try:
        for name in ("pack.json", *pack.files):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, place / name)
    except OSError as e:
        raise UsageError(f"{place} cannot be written: {e.strerror or e}", "give another --out") from e


def _tell(event: Outcome | Release, say: Callable[[str], None]) -> None:
    if isinstance(event, Release):
        say(f"{event}: compiling")
    elif event.failure is not None:
        say(f"{event.failure} (after {event.seconds:.0f} s)")
    elif event.cached:
        say(f"{event.release}: was compiled before; --backends {event.release.backends[0]}")
    else:
        say(f"{event.release}: {event.seconds:.0f} s; --backends {event.release.backends[0]}")


def _as_json(outcome: Outcome) -> dict[str, object]:
    return {
        "release": str(outcome.release), "folder": None if outcome.folder is None else str(outcome.folder),
        "failure": outcome.failure, "hint": outcome.hint, "cached": outcome.cached,
        "seconds": round(outcome.seconds, 1), "log": str(outcome.log), "backends": list(outcome.release.backends),
    }  # fmt: skip
