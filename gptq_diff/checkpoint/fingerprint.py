"""A checkpoint's fingerprint: the same for the same tensors and config, whatever the shards or the directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from gptq_diff.checkpoint.header import TensorEntry
from gptq_diff.errors import CheckpointError

_WHOLE = (".scales", ".qzeros", ".g_idx")  # small, and where one wrong bit spoils a group
_BLOCK = 4096
_SAMPLES = 16  # blocks of a tensor that is not hashed whole: its first, its last and fourteen between
_CHUNK = 1 << 20


def fingerprint_of(config: Mapping[str, object], tensors: Mapping[str, TensorEntry], *, full: bool) -> str:
    """Sha256, hex, over the config (as sorted JSON), the tensors' names, dtypes, shapes and (sampled) bytes."""
    digest = hashlib.sha256(json.dumps(dict(config), sort_keys=True).encode())
    for name in sorted(tensors):
        entry = tensors[name]
        digest.update(json.dumps([name, entry.dtype, list(entry.shape)]).encode())
        whole = full or name.endswith(_WHOLE)
        for block in _blocks(entry, whole=whole):
            digest.update(block)
    return digest.hexdigest()


def _blocks(entry: TensorEntry, *, whole: bool) -> Iterator[bytes]:
    size = entry.end - entry.start
    if whole or size <= _SAMPLES * _BLOCK:
        spans = [(at, min(at + _CHUNK, entry.end)) for at in range(entry.start, entry.end, _CHUNK)]
    else:
        last = entry.end - _BLOCK
        starts = [entry.start + (last - entry.start) * i // (_SAMPLES - 1) for i in range(_SAMPLES)]
        spans = [(at, at + _BLOCK) for at in starts]
    try:
        with entry.file.open("rb") as file:
            for start, end in spans:
                file.seek(start)
                block = file.read(end - start)
                if len(block) != end - start:
                    raise CheckpointError(f"{entry.file} became shorter while it was read; fetch the file again")
                yield block
    except OSError as error:
        raise CheckpointError(f"{entry.file} cannot be read: {error.strerror}; check the file and the disk") from error
