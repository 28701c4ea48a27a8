"""Where pip is set to look, read off pip itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gptq_diff.upstream.installer import DEFAULT_INDEX, Installer, installer_here, settings

QUIET = {"PIP_CONFIG_FILE": os.devnull, "PATH": os.environ["PATH"]}


def test_nothing_set_is_the_python_package_index() -> None:
    """As pip does."""
    assert settings("") == Installer(index_urls=(DEFAULT_INDEX,))


def test_every_setting_is_read_and_the_environment_wins_over_files() -> None:
    """The lines are pip's own format, `section.name='value'`; several URLs are divided by blanks or line ends."""
    listed = "\n".join([
        ":env:.index-url='https://user:secret@mirror.example/simple'",
        "global.index-url='https://loses.example/simple'",
        "global.extra-index-url='\\nfile:///a/simple\\nfile:///b/simple'",
        "install.find-links='/wheels /more'",
        "global.cert='/etc/ca.pem'", "global.client-cert='/me.pem'", "global.proxy='http://proxy:3128'",
        "global.trusted-host='one.example two.example'", "global.timeout='42'", "freeze.timeout='1'", "not a line",
    ])  # fmt: skip
    assert settings(listed) == Installer(
        index_urls=("https://user:secret@mirror.example/simple", "file:///a/simple", "file:///b/simple"),
        find_links=("/wheels", "/more"), trusted_hosts=("one.example", "two.example"), cert="/etc/ca.pem",
        client_cert="/me.pem", proxy="http://proxy:3128", timeout=42.0,
    )  # fmt: skip


@pytest.mark.parametrize("value", ["1", "true", "yes", "On"])
def test_no_index_leaves_the_folders(value: str) -> None:
    """`--no-index` is how machines without a network are set up."""
    found = settings(f"global.no-index='{value}'\nglobal.find-links='/wheels'")
    assert (found.index_urls, found.find_links) == ((), ("/wheels",))
    assert settings("global.no-index='false'").index_urls == (DEFAULT_INDEX,)


@pytest.mark.parametrize("line", ["global.timeout='soon'", "global.timeout=''"])
def test_a_time_that_is_none_is_pips_own(line: str) -> None:
    """A typo there must not keep anybody from fetching."""
    assert settings(line).timeout == 15.0


def test_pip_is_asked(tmp_path: Path) -> None:
    """A real pip, with a config file and a variable."""
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://from.file/simple\nfind-links = /from/file\n")
    environment = {**QUIET, "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_INDEX_URL": "https://from.env/simple"}
    found = installer_here(Path(sys.executable), environment)
    assert found.index_urls[0] == "https://from.env/simple"
    assert "/from/file" in found.find_links


def test_without_a_pip_the_variables_count(tmp_path: Path) -> None:
    """An environment made by uv has none."""
    environment = {"PATH": str(tmp_path), "PIP_INDEX_URL": "https://from.env/simple", "PIP_NO_INDEX": ""}
    found = installer_here(tmp_path / "no-python", environment)
    assert found == Installer(index_urls=("https://from.env/simple",))
