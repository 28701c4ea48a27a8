"""The pack of a release: from the store, from a folder of packs, from a source distribution at hand, or the index."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from gptq_diff.errors import GptqDiffError, UsageError
from gptq_diff.releases import Release
from gptq_diff.upstream.installer import Installer
from gptq_diff.upstream.pack import packs_in, read_pack, write_pack
from gptq_diff.upstream.select import select
from gptq_diff.upstream.store import Store


@dataclass(frozen=True)
class Where:
    """sdist: a source distribution at hand. sources: a pack, or a folder of packs. installer: called where needed."""

    sdist: Path | None
    sources: Path | None
    installer: Callable[[], Installer]


def pack_of(release: Release, store: Store, where: Where, say: Callable[[str], None]) -> Path:
    """Folder of its pack, which is in the store afterwards unless it came from `where.sources`.

    UsageError for a file or a folder that does not hold that release; GptqDiffError where it cannot be fetched.
    """
    if where.sources is not None:
        return _among(release, where.sources)
    folder = store.sources(release)
    if where.sdist is not None:
        if not where.sdist.is_file():
            raise UsageError(f"there is no file {where.sdist}", "give the release's source distribution, a .tar.gz")
        write_pack(select(where.sdist, release), release, where.sdist, folder)
        return folder
    if _sound(folder):
        return folder
    from gptq_diff.upstream.index import fetch_sdist

    say(f"fetching the source distribution of {release}")
    with tempfile.TemporaryDirectory(prefix="gptq-diff-sdist-") as place:
        sdist = fetch_sdist(release, where.installer(), Path(place))
        write_pack(select(sdist, release), release, sdist, folder)
    return folder


def _among(release: Release, sources: Path) -> Path:
    there = packs_in(sources)
    for folder in there:
        if read_pack(folder).release == release:
            return folder
    names = ", ".join(sorted(folder.name for folder in there)) or "none"
    raise UsageError(f"{sources} holds no source pack of {release} (packs there: {names})", "gptq-diff kernels fetch")


def _sound(folder: Path) -> bool:
    try:
        read_pack(folder)
    except GptqDiffError:
        return False
    return True
