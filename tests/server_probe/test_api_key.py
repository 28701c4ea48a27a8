"""The key is read from where the user says, and shown nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptq_diff.config_file import unsafe
from gptq_diff.errors import UsageError
from gptq_diff.server_probe.api_key import read_key

SECRET = "sk-3141592653"


def test_from_a_file_and_from_a_variable(tmp_path: Path) -> None:
    """Blanks around it, the newline of an editor and a byte-order mark are no part of it."""
    file = tmp_path / "key"
    file.write_bytes(b"\xef\xbb\xbf" + f" {SECRET}\n".encode())
    for key in (read_key(file, None, {}), read_key(None, "MY_KEY", {"MY_KEY": SECRET})):
        assert key is not None
        assert key.header() == {"Authorization": f"Bearer {SECRET}"}
        assert SECRET not in f"{key!r} {key} {vars(type(key))}"
        assert key.hidden_in(f"Incorrect key {SECRET}!") == "Incorrect key [key]!"
    assert read_key(None, None, {}) is None


@pytest.mark.parametrize("text", ["", " \n", f"{SECRET}\n{SECRET}", "sk ey", "schlüssel", "sk-\x1b[31m"])
def test_what_cannot_be_a_key(text: str, tmp_path: Path) -> None:
    """A wrong file, mostly; its contents are not repeated."""
    file = tmp_path / "key"
    file.write_text(text, encoding="utf-8")
    for arguments in ((file, None, {}), (None, "K", {"K": text})):
        with pytest.raises(UsageError) as caught:
            read_key(*arguments)
        assert not text.strip() or text.strip() not in f"{caught.value}{caught.value.hint}"


def test_other_slips(tmp_path: Path) -> None:
    """Both places, a variable that is not there, a file that is no text."""
    with pytest.raises(UsageError, match="both"):
        read_key(tmp_path / "key", "K", {})
    with pytest.raises(UsageError, match="no variable K"):
        read_key(None, "K", {})
    (tmp_path / "key").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no text"):
        read_key(tmp_path / "key", None, {})


def test_a_projects_file_may_name_neither() -> None:
    """It could have the user's other secrets sent to a server of its choice."""
    assert all(unsafe(name, "x") for name in ("api-key-file", "api_key_env", "base-url"))
