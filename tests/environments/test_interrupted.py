"""What becomes of an environment when whoever makes it is interrupted, killed, or not alone."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptq_diff.environments.create import Order, create
from gptq_diff.environments.recipes import Recipe, Step
from gptq_diff.environments.remove import remove
from gptq_diff.environments.state import state_of
from gptq_diff.errors import GptqDiffError
from tests.environments.offline import Seen, recipe, wheel
from tests.fake_worker import alive, ended

REPOSITORY = Path(__file__).parents[2]

CREATE = """
import pickle, signal, sys
from gptq_diff.environments.create import create
from tests.environments.offline import Seen

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with open(sys.argv[1], "rb") as file:
    order = pickle.load(file)
try:
    create(order, Seen())
except KeyboardInterrupt:
    sys.exit(130)
"""

SLEEPER = """
import os, subprocess, time

place = os.environ["SLEEPER"]
child = subprocess.Popen(["sleep", "600"])
with open(place + "/pids.partial", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(place + "/pids.partial", place + "/pids")
while not os.path.exists(place + "/wake"):
    time.sleep(0.02)
child.kill()
"""
"""A module whose import takes until the file `wake` appears: a step that can be interrupted at leisure."""

WANTED = recipe(Step("install", ("sleeper==1.0",)), Step("import", ("sleeper",)), Step("import", ("json",)))


class Creator:
    """A process that makes the environment and has come to the step that sleeps."""

    def __init__(self, directory: Path, folder: Path) -> None:
        self._folder = folder
        self.order = Order(WANTED, directory)
        place = folder / "order.pickle"
        place.write_bytes(pickle.dumps(self.order))
        self.process = subprocess.Popen(
            [sys.executable, "-c", CREATE, str(place)], cwd=REPOSITORY, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        until = time.monotonic() + 60
        while not (folder / "pids").exists():
            assert self.process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        self.installers = [int(pid) for pid in (folder / "pids").read_text().split()]

    def wake(self) -> None:
        """Let the step finish."""
        (self._folder / "wake").touch()


@pytest.fixture
def creator(
    begun: Callable[[Recipe], Path], packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Creator]:
    """Step 2 of 4 is done, step 3 under way."""
    wheel(packages, "sleeper", {"sleeper/__init__.py": SLEEPER})
    monkeypatch.setenv("SLEEPER", str(tmp_path))
    made = Creator(begun(WANTED), tmp_path)
    yield made
    made.wake()
    made.process.kill()
    made.process.wait()
    assert ended(made.installers)


def test_ctrl_c_ends_the_installer_and_keeps_what_is_done(creator: Creator) -> None:
    """Its children too; afterwards the same call goes on at the step that was interrupted."""
    creator.process.send_signal(signal.SIGINT)
    assert creator.process.wait(timeout=20) == 130
    assert ended(creator.installers)
    state = state_of(creator.order.directory)
    assert state is not None
    assert (state.done, state.steps) == (2, 4)
    creator.wake()
    watcher = Seen()
    assert create(creator.order, watcher).ready
    assert watcher.begun == ["3/4 import sleeper", "4/4 import json"]


def test_after_kill_9_the_installer_is_waited_for(creator: Creator) -> None:
    """It goes on without its parent, and two of them in one environment would spoil it."""
    creator.process.kill()
    creator.process.wait()
    assert alive(creator.installers[0])
    watcher = Seen()
    result = []
    other = threading.Thread(target=lambda: result.append(create(creator.order, watcher)))
    other.start()
    until = time.monotonic() + 20
    while not watcher.notes:
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.2)
    assert (watcher.notes, watcher.begun) == (["waiting for an installer that a killed gptq-diff left behind"], [])
    creator.wake()
    other.join(timeout=60)
    assert result[0].ready
    assert watcher.begun == ["3/4 import sleeper", "4/4 import json"]


def test_a_second_one_at_once_is_refused(creator: Creator) -> None:
    """The one who came first goes on undisturbed; neither may it be removed meanwhile."""
    said = rf"another gptq-diff \(process {creator.process.pid}\) is at work on {creator.order.directory}"
    with pytest.raises(GptqDiffError, match=said) as caught:
        create(creator.order, Seen())
    assert caught.value.exit_code == 3
    with pytest.raises(GptqDiffError, match=said):
        remove(creator.order.directory, lambda: None)
    creator.wake()
    assert creator.process.wait(timeout=60) == 0
    state = state_of(creator.order.directory)
    assert state is not None
    assert state.ready
