"""A directory that holds only this package, for a worker's PYTHONPATH.

Putting site-packages there instead would let our torch shadow the engine's. The directory is named by the
package's content, so compiled-code caches stay valid between runs and two versions never mix.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import gptq_diff
from gptq_diff.errors import UsageError

NEEDED = {".py", ".ptx"}
"""What a worker reads: its code, and the kernel that looks at calls on a GPU."""


def stage_package(cache: Path) -> Path:
    """The directory to put on PYTHONPATH: made once per content, and mended where files are missing or changed.

    Safe against two runs at once. UsageError when the cache cannot be written.
    """
    source = Path(gptq_diff.__file__).parent
    contents = {p.relative_to(source.parent): p.read_bytes() for p in sorted(source.rglob("*")) if p.suffix in NEEDED}
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(str(name).encode() + b"\0" + content + b"\0")
    target = cache / "stage" / digest.hexdigest()[:16]
    try:
        if not target.exists():
            _make(target, contents)
        for name, content in contents.items():
            _put(target / name, content)
    except OSError as e:
        raise UsageError(
            f"the cache directory {cache} cannot be written: {e.strerror or e}",
            "free some space, or set XDG_CACHE_HOME to a directory that can be written",
        ) from e
    return target


def _make(target: Path, contents: dict[Path, bytes]) -> None:
    """All files at once, by rename, so that nobody ever imports half a package."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix="part-"))
    try:
        for name, content in contents.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content)
        part.chmod(0o755)
        part.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # another run was first: its copy is as good
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _put(place: Path, content: bytes) -> None:
    """Make sure that the file has this content; a worker that reads it meanwhile sees the old or the new one, whole."""
    if place.is_file() and place.read_bytes() == content:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=place.parent, prefix="part-", delete=False) as f:
        f.write(content)
    Path(f.name).replace(place)
