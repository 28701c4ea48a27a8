"""The few source files that build_upstream.py compiles, taken out of source distributions, to be carried to a GPU.

python -m benchmarks.gpu.upstream_sources --out DIR vllm-0.33.0.tar.gz gptqmodel-7.7.0.tar.gz

Standard library only; nothing of upstream's is kept in this repository.
"""

from __future__ import annotations

import argparse
import tarfile
from pathlib import Path, PurePosixPath

WANTED = {
    "vllm-0.33.0": (
        ("csrc/torch_utils.h", "csrc/torch_utils.h"),
        ("csrc/quantization/gptq/", "csrc/quantization/gptq/"),
    ),
    "gptqmodel-7.7.0": (("gptqmodel_ext/exllamav2/", "exllamav2/"),),
}
"""Distribution -> (file or folder in it, where it goes below DIR/distribution)."""


def destination(member: str) -> PurePosixPath | None:
    """Where below DIR a member of the archive goes; None for what is not wanted."""
    distribution, _, path = member.partition("/")
    for there, here in WANTED.get(distribution, ()):
        if path == there or (there.endswith("/") and path.startswith(there)):
            place = PurePosixPath(distribution, here + path[len(there) :])
            return None if ".." in place.parts else place
    return None


def extract(archive: Path, out: Path) -> list[str]:
    """Copy what is wanted; the names of the files."""
    found = []
    with tarfile.open(archive) as tar:
        for member in tar:
            place = destination(member.name) if member.isfile() else None
            stream = tar.extractfile(member) if place is not None else None
            if place is None or stream is None:
                continue
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            (out / place).write_bytes(stream.read())
            found.append(str(place))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archives", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    for archive in asked.archives:
        found = extract(archive, asked.out)
        print(f"{archive.name}: {len(found)} files")


if __name__ == "__main__":
    main()
