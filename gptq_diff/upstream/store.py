"""Where packs and compiled kernels lie: below one folder of the user's.

ROOT/sources/vllm==0.20.2/    a source pack
ROOT/builds/vllm==0.20.2/torch2.11.0+cu130-cuda13.0-sm90-1a2b3c4d/    a compiled kernel: built.json and the library
ROOT/logs/vllm==0.20.2.log    what compilers said last
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from gptq_diff.built_file import NAME, Built, read_built
from gptq_diff.errors import BackendError
from gptq_diff.releases import Release, release_named


@dataclass(frozen=True)
class Kept:
    """One compiled kernel and its folder."""

    built: Built
    folder: Path

    @property
    def release(self) -> Release:
        """Whose it is."""
        return Release(self.built.package, self.built.version)


@dataclass(frozen=True)
class Store:
    """The folder, which need not exist."""

    root: Path

    def sources(self, release: Release) -> Path:
        """Where its pack is or would be."""
        return self.root / "sources" / str(release)

    def builds(self, release: Release) -> Path:
        """Where its compiled kernels are or would be."""
        return self.root / "builds" / str(release)

    def log(self, release: Release) -> Path:
        """What compilers said when it was built last."""
        return self.root / "logs" / f"{release}.log"

    def kept(self, release: Release | None = None) -> list[Kept]:
        """Every compiled kernel, or those of a release, by name; folders that hold none are passed over."""
        found = []
        pattern = f"builds/{release or '*'}/*/{NAME}"
        for file in sorted(self.root.glob(pattern)):
            if file.parent.name.startswith("."):
                continue
            try:
                found.append(Kept(read_built(file.parent), file.parent))
            except BackendError:
                continue  # damaged: `remove` takes it away, `build` with another torch passes it by
        return found

    def fetched(self) -> list[Release]:
        """Releases of which there is a pack."""
        folders = (file.parent.name for file in sorted(self.root.glob("sources/*/pack.json")))
        return [release_named(name) for name in folders if not name.startswith(".")]

    def remove(self, release: Release) -> bool:
        """Remove its kernels, its pack and its log, and nothing else; False where there was none."""
        places = [self.builds(release), self.sources(release)]
        there = [place for place in places if place.is_dir() and not place.is_symlink()]
        for place in there:
            shutil.rmtree(place)
        self.log(release).unlink(missing_ok=True)
        return bool(there)


def user_store() -> Store:
    """The user's own ($XDG_DATA_HOME/gptq-diff/kernels on Linux)."""
    import platformdirs  # not in an engine's interpreter, where scripts compile too

    return Store(platformdirs.user_data_path("gptq-diff") / "kernels")
