"""A source pack: the kernel sources of one release in a folder, a few hundred KB, to be carried to any machine.

FOLDER/pack.json      which release, of which source distribution, and the SHA-256 of every file
FOLDER/csrc/...       the files, where the source distribution has them
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from gptq_diff.errors import GptqDiffError, UsageError
from gptq_diff.releases import Release
from gptq_diff.upstream.select import Selected

RECORD = "pack.json"


@dataclass(frozen=True)
class Pack:
    """What pack.json says.

    sdist: file name of the source distribution, sdist_sha256: its hash. sources: files that are compiled. include:
    folder for the compiler's search path. files: path -> SHA-256.
    """

    package: str
    version: str
    sdist: str
    sdist_sha256: str
    sources: tuple[str, ...]
    include: str
    files: Mapping[str, str]

    @property
    def release(self) -> Release:
        """Whose sources these are."""
        return Release(self.package, self.version)

    @property
    def digest(self) -> str:
        """Equal for releases whose kernel sources are the same bytes; licences do not count."""
        kernel = sorted((path, sha) for path, sha in self.files.items() if "/" in path)
        return hashlib.sha256(json.dumps([kernel, list(self.sources), self.include]).encode()).hexdigest()[:16]

    def text_of(self, folder: Path, path: str) -> str:
        """One of its files."""
        return (folder / path).read_text(encoding="utf-8", errors="replace")


def write_pack(selected: Selected, release: Release, sdist: Path, folder: Path) -> Pack:
    """Make the pack at `folder`, in place of an older one; whole or not at all. GptqDiffError where it cannot be."""
    files = {path: hashlib.sha256(content).hexdigest() for path, content in selected.files.items()}
    with sdist.open("rb") as stream:
        digest = _sha256(stream.read())
    pack = Pack(release.package, release.version, sdist.name, digest, selected.sources, selected.include, files)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
        try:
            for path, content in selected.files.items():
                (part / path).parent.mkdir(parents=True, exist_ok=True)
                (part / path).write_bytes(content)
            text = json.dumps({"schema_version": 1, **asdict(pack)}, indent=1)
            (part / RECORD).write_text(text, encoding="utf-8")
            part.chmod(0o755)
            _put(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as e:
        raise GptqDiffError(f"{folder} cannot be written: {e.strerror or e}", "give another folder") from e
    return pack


def read_pack(folder: Path) -> Pack:
    """The pack at that folder, every file checked; UsageError where there is none, or a file is not as it was."""
    try:
        raw = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        pack = Pack(
            str(raw["package"]), str(raw["version"]), str(raw["sdist"]), str(raw["sdist_sha256"]),
            tuple(map(str, raw["sources"])), str(raw["include"]), {str(k): str(v) for k, v in raw["files"].items()},
        )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise UsageError(f"{folder} is no source pack: {e}", "gptq-diff kernels fetch makes one") from e
    for path, sha in pack.files.items():
        inside = PurePosixPath(path)
        if inside.is_absolute() or ".." in inside.parts:
            raise UsageError(f"{folder} is no source pack: it names the file {path!r}", "fetch it again")
        try:
            same = _sha256((folder / path).read_bytes()) == sha
        except OSError:
            same = False
        if not same:
            raise UsageError(f"{folder / path} is missing or is not as it was fetched", "fetch or copy it again")
    return pack


def packs_in(folder: Path) -> list[Path]:
    """Every pack in that folder, or the folder itself where it is one; unchecked."""
    if (folder / RECORD).is_file():
        return [folder]
    return sorted(place.parent for place in folder.glob(f"*/{RECORD}") if not place.parent.name.startswith("."))


def _put(part: Path, folder: Path) -> None:
    """Rename, and where a pack is in the way put it aside first."""
    if (folder / RECORD).is_file():
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".old-"))
        folder.rename(aside / "old")
        part.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        part.rename(folder)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
