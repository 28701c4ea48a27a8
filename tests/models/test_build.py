"""Built once, found again, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptq_diff.errors import GptqDiffError, UsageError
from gptq_diff.models import tensor_file
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions

SLOW_BUILD = """
import sys, time
from pathlib import Path
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions
def progress(line):
    print(line, flush=True)
    while line.startswith("generating block 3") and not Path(sys.argv[1]).exists():
        time.sleep(0.01)
print(build_model("tiny-qwen2", BuildOptions(seed=9), progress=progress))
"""


def start(release: Path) -> subprocess.Popen:
    """A build in a process of its own that waits before its third block until the file `release` exists."""
    command = [sys.executable, "-c", SLOW_BUILD, str(release)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def wait_for(process: subprocess.Popen, text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(f"the build never said {text!r}")


def test_the_cache_is_used_again(own_cache: Path) -> None:
    said: list[str] = []
    directory = build_model("tiny-qwen2")
    stamp = (directory / "model.safetensors").stat().st_mtime_ns
    assert directory.is_relative_to(own_cache)
    assert build_model("tiny-qwen2", progress=said.append) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == stamp
    assert "there already" in said[0]
    assert build_model("tiny-qwen2", BuildOptions(bits=4, seed=0)) == directory  # the defaults, spelled out
    assert build_model("tiny-qwen2", BuildOptions(seed=1)) != directory


def test_a_damaged_cache_is_built_again(own_cache: Path) -> None:
    directory = build_model("tiny-qwen2")
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert build_model("tiny-qwen2") == directory
    assert weights.read_bytes() == whole


def test_out_is_reused_only_for_the_same_build(own_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "model"
    assert build_model("tiny-qwen2", out=out) == out
    assert build_model("tiny-qwen2", out=out) == out
    with pytest.raises(UsageError, match="not this build"):
        build_model("tiny-qwen2", BuildOptions(seed=1), out=out)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not this build"):
        build_model("tiny-qwen2", out=foreign)
    assert (foreign / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert (build_model("tiny-qwen2", out=tmp_path / "empty") / "config.json").is_file()


def test_a_killed_build_leaves_no_model_and_the_next_one_cleans_up(own_cache: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "never")
    wait_for(process, "generating block 3")
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [path.name for path in (own_cache / "models").iterdir()]
    assert len(left) == 1
    assert left[0].endswith(".partial")
    directory = build_model("tiny-qwen2", BuildOptions(seed=9))
    assert [path.name for path in (own_cache / "models").iterdir()] == [directory.name]


def test_an_interrupted_build_cleans_up_after_itself(own_cache: Path) -> None:
    def interrupt(line: str) -> None:
        if "block 2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_model("tiny-qwen2", progress=interrupt)
    assert not list((own_cache / "models").iterdir())


def test_two_builds_at_once_make_one_model(own_cache: Path, tmp_path: Path) -> None:
    """The second waits for the first and takes its result."""
    release = tmp_path / "release"
    first = start(release)
    wait_for(first, "generating block 3")
    second = start(release)
    wait_for(second, "waiting for another")
    release.touch()
    outs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert outs[0].splitlines()[-1] == outs[1].splitlines()[-1]
    assert "there already" in outs[1]
    assert "generating" not in outs[1]


@pytest.mark.parametrize(
    ("name", "near"),
    [("tiny-qwen", "tiny-qwen2"), ("smolm2", "smollm2"), ("synthetic-qwen2.5", "synthetic-qwen2.5-32b")],
)
def test_an_unknown_name_is_answered_with_the_nearest(own_cache: Path, name: str, near: str) -> None:
    with pytest.raises(UsageError) as refused:
        build_model(name)
    assert near in str(refused.value.hint)


def test_a_full_disk_is_said_before_anything_is_written(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(tensor_file.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(GptqDiffError, match="GB free"):
        build_model("tiny-qwen2")
    assert not list((own_cache / "models").iterdir())


def test_a_file_in_the_way_is_named(own_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GptqDiffError, match="file"):
        build_model("tiny-qwen2", out=tmp_path / "file" / "model")


def test_a_synthetic_slice_is_sharded_with_an_index(own_cache: Path, tmp_path: Path, monkeypatch) -> None:
    """The same writer as the 18 GB build, with narrow blocks and small shards."""
    from gptq_diff.models import random_models, random_qwen
    from tests.models.decode import load

    def small(directory, plans, data):
        tensor_file.write_tensors(directory, plans, data, shard_bytes=100_000)

    monkeypatch.setattr(random_qwen, "write_tensors", small)
    begun = time.monotonic()
    directory = build_model("tiny-qwen2", out=tmp_path / "m")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 4
    tensors = load(directory)
    assert set(tensors) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    assert time.monotonic() - begun < 20
    shape = random_models.SYNTHETIC_QWEN25_32B.shape
    assert (shape.hidden, shape.intermediate, shape.blocks, shape.heads, shape.kv_heads) == (5120, 27648, 64, 40, 8)
