"""The parent of the compiling processes: outcomes, several at once, nothing left. The processes are stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from gptq_diff.errors import UsageError
from gptq_diff.processes import descendants, running
from gptq_diff.releases import Release
from gptq_diff.upstream.build import How, Outcome, build_all
from gptq_diff.upstream.store import Store
from tests.upstream.made import GEMM
from tests.upstream.test_pack import packed

STAND_IN = """
import json, os, subprocess, sys, time
spec = json.load(open(sys.argv[1]))
def say(folder, failure=None, cached=False):
    with open(sys.argv[2], "w") as f:
        json.dump({"folder": folder, "failure": failure, "hint": None, "cached": cached}, f)
"""


def how(tmp_path: Path, body: str, jobs: int = 1, timeout: float | None = 60, python: str = sys.executable) -> How:
    """Compiling processes that do this instead."""
    module = tmp_path / "staged" / "gptq_diff" / "upstream" / "compile.py"
    module.parent.mkdir(parents=True, exist_ok=True)
    for folder in (module.parent, module.parent.parent):
        (folder / "__init__.py").write_text("")
    module.write_text(STAND_IN + textwrap.dedent(body))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return How(Path(python), tmp_path / "staged", "9.0", jobs, timeout, environment)


def build(tmp_path: Path, how_: How, *packs: Path) -> list[Outcome]:
    """The outcomes."""
    return build_all(packs or [packed(tmp_path)], Store(tmp_path / "store"), how_, lambda event: None)


def test_a_kernel_and_what_is_told_of_it(tmp_path: Path) -> None:
    """The process is told everything in its spec, in an empty directory; what it prints is in the log."""
    body = """
        assert os.listdir() == [] and spec["version"] == "0.5.1" and spec["arch"] == "9.0"
        print("compiling", spec["name"])
        say(spec["target"] + "/kernel", cached=True)
    """
    events: list[Outcome | Release] = []
    store = Store(tmp_path / "store")
    outcomes = build_all([packed(tmp_path)], store, how(tmp_path, body), events.append)
    release = Release("vllm", "0.5.1")
    assert (outcomes[0].folder, outcomes[0].failure, outcomes[0].cached) == (
        store.builds(release) / "kernel",
        None,
        True,
    )
    assert events == [release, outcomes[0]]
    assert outcomes[0].log.read_text() == "compiling gptq_diff_vllm_0_5_1\n"


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ("say(None, 'it does not compile: q_gemm.cu(3): error: x')", "it does not compile: q_gemm.cu(3): error: x"),
        ("sys.exit(9)", "ended with status 9: nothing in its log"),
        ("print('no disk'); sys.exit(1)", "ended with status 1: no disk"),
        ("os.kill(os.getpid(), 9)", "was killed by signal 9"),
        ("raise MemoryError('none')", "MemoryError: none"),
    ],
)
def test_whatever_happens_is_an_outcome_that_names_the_release(body: str, failure: str, tmp_path: Path) -> None:
    """And where to read on."""
    (outcome,) = build(tmp_path, how(tmp_path, body))
    assert outcome.folder is None
    assert str(outcome.failure).startswith("vllm==0.5.1: ")
    assert failure in str(outcome.failure)
    assert str(outcome.hint).startswith("the log is ")


def test_one_that_takes_too_long_is_ended_with_its_compilers(tmp_path: Path) -> None:
    """They are in process groups of their own, as ninja starts them."""
    body = """
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0)
        time.sleep(60)
    """
    body = body.replace("process_group=0", "preexec_fn=lambda: os.setpgid(0, 0)")
    before = {p.pid for p in descendants(os.getpid(), running())}
    (outcome,) = build(tmp_path, how(tmp_path, body, timeout=1.5))
    assert outcome.failure == "vllm==0.5.1 was not compiled within 1.5 s"
    assert {p.pid for p in descendants(os.getpid(), running())} <= before


def test_several_at_once_and_no_more_than_asked(tmp_path: Path) -> None:
    """Each waits until both are there, which one after the other never were."""
    body = """
        place = os.path.dirname(os.path.dirname(spec["target"])) + "/meeting"
        os.makedirs(place, exist_ok=True)
        open(place + "/" + spec["version"], "w").close()
        until = time.time() + 20
        while len(os.listdir(place)) < 2 and time.time() < until:
            time.sleep(0.02)
        say("/x", None if len(os.listdir(place)) == 2 else "alone")
    """
    packs = [packed(tmp_path, v, release=Release("vllm", v)) for v in ("0.5.1", "0.6.0")]
    outcomes = build(tmp_path, how(tmp_path, body, jobs=2), *packs)
    assert [(str(o.release), o.failure) for o in outcomes] == [("vllm==0.5.1", None), ("vllm==0.6.0", None)]
    single = [packed(tmp_path, f"{v}b", release=Release("vllm", v)) for v in ("0.7.0", "0.8.0")]
    starts: list[str] = []
    body = "say('/x')"
    build_all(single, Store(tmp_path / "s"), how(tmp_path, body), lambda e: starts.append(type(e).__name__))
    assert starts == ["Release", "Outcome", "Release", "Outcome"]


def test_one_that_cannot_be_planned_or_started_does_not_stop_the_others(tmp_path: Path) -> None:
    """A signature that is not known; an interpreter that is not there."""
    odd = packed(tmp_path, "odd", gemm=GEMM.format(more="bool nothing,"), release=Release("vllm", "0.9.0"))
    outcomes = build(tmp_path, how(tmp_path, "say('/x')"), odd, packed(tmp_path))
    assert "parameters that are not known" in str(outcomes[0].failure)
    assert outcomes[1].failure is None
    (outcome,) = build(tmp_path, how(tmp_path, "", python=str(tmp_path / "no-python")), packed(tmp_path, "again"))
    assert "cannot be started" in str(outcome.failure)


def test_a_damaged_pack_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    """Exit 2: it is what the user gave."""
    folder = packed(tmp_path)
    (folder / "csrc/torch_utils.h").write_text("changed")
    with pytest.raises(UsageError, match="not as it was fetched"):
        build(tmp_path, how(tmp_path, "say('/x')"), packed(tmp_path, "good"), folder)
    assert not (tmp_path / "store").exists()


def test_an_interrupted_build_leaves_no_process(tmp_path: Path) -> None:
    """Ctrl-C in the parent, while a compiler runs."""
    asked = how(tmp_path, "print('begun', flush=True); time.sleep(60)")
    log = Store(tmp_path / "store").log(Release("vllm", "0.5.1"))
    pack = packed(tmp_path)

    def interrupt() -> None:
        until = time.monotonic() + 30
        while not (log.exists() and log.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = {p.pid for p in descendants(os.getpid(), running())}
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, asked, pack)
    thread.join()
    assert {p.pid for p in descendants(os.getpid(), running())} <= before


def test_the_real_process_says_what_this_interpreter_lacks(tmp_path: Path) -> None:
    """Through the staged package, as `kernels build` runs it: torch for the CPU alone, in a sentence."""
    torch = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.version.cuda)"], capture_output=True, text=True, check=True
    )
    if torch.stdout.strip() != "None":
        pytest.skip("torch is built for CUDA here: the kernel would be compiled")
    from gptq_diff.stage import stage_package

    real = How(Path(sys.executable), stage_package(tmp_path / "cache"), "9.0", 1, 120, dict(os.environ))
    (outcome,) = build(tmp_path, real)
    assert "built without CUDA" in str(outcome.failure)
