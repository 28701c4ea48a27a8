from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from gptq_diff.cli.threads import wait_without_spinning

wait_without_spinning()  # test processes share the cores; before anything imports torch

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job of a shell's background, whose children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Qwen2 checkpoint with its defaults, built once; never write there."""
    from gptq_diff.models.build import build_model

    return build_model("tiny-qwen2", out=tmp_path_factory.mktemp("models") / "tiny-qwen2")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound random Qwen2 checkpoint of two blocks, 14 linears, built once; never write there."""
    from gptq_diff.models.build import build_model
    from gptq_diff.models.options import BuildOptions

    return build_model("tiny-qwen2", BuildOptions(blocks=2), tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def shifted_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the gain shift that makes the fast path overflow in block 1's down_proj; never write there."""
    from gptq_diff.models.build import build_model
    from gptq_diff.models.options import BuildOptions
    from gptq_diff.models.random_models import TINY_QWEN2_OVERFLOW

    options = BuildOptions(blocks=2, gain_shift=TINY_QWEN2_OVERFLOW)
    return build_model("tiny-qwen2", options, tmp_path_factory.mktemp("models") / "shifted")


@pytest.fixture(autouse=True)
def no_environments(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees the environments of whoever runs it: `vllm` would be one of the default backends."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run in this process (tests/session/in_process.py); so none is started ahead."""
    from gptq_diff.cli import main_job
    from gptq_diff.session import capture_all
    from tests.session.in_process import run_here

    monkeypatch.setattr(capture_all, "run_load", run_here)
    monkeypatch.setattr(main_job, "first_started", lambda asked, run: contextlib.nullcontext())


@pytest.fixture
def program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs gptq-diff's `main` in this process, in an empty directory: its exit code, stdout and stderr.

    stdin: what it can read there, as text or bytes.
    """
    from gptq_diff.cli import app

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def run(*arguments: object, stdin: str | bytes = b"") -> tuple[int, str, str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["gptq-diff", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            app.main()
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return run
