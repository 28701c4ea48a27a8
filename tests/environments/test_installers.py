"""The commands of every kind of step, for pip and for uv."""

from __future__ import annotations

from pathlib import Path

from gptq_diff.environments.installers import Installer
from gptq_diff.environments.recipes import Step

PYTHON = Path("/env/bin/python")
PIP = Installer(PYTHON, None, "https://torch.invalid/cpu", Path("/pins.txt"))
UV = Installer(PYTHON, "/bin/uv", "https://torch.invalid/cpu", Path("/pins.txt"))
INSTALL = Step("install", ("a==1", "b"), no_deps=True, binary=("a",))


def test_pip_installs_isolated_and_pinned() -> None:
    """-I: neither PYTHONPATH nor the working directory has a say."""
    assert PIP.command(INSTALL) == [
        *("/env/bin/python", "-I", "-m", "pip", "install", "--progress-bar", "off", "--no-deps"),
        *("--constraint", "/pins.txt", "--only-binary", "a", "a==1", "b"),
    ]


def test_uv_installs_into_the_same_environment() -> None:
    """Named by its interpreter, not by VIRTUAL_ENV."""
    assert UV.command(INSTALL) == [
        *("/bin/uv", "pip", "install", "--python", "/env/bin/python", "--no-deps"),
        *("--constraint", "/pins.txt", "--only-binary", "a", "a==1", "b"),
    ]


def test_torch_alone_is_looked_for_on_its_own_index() -> None:
    """uv, which stops at the first index that has a package, is told to compare as pip does."""
    torch = Step("install", ("torch",), torch=True)
    extra = ["--extra-index-url", "https://torch.invalid/cpu"]
    assert PIP.command(torch)[-3:] == [*extra, "torch"]
    assert UV.command(torch)[-5:] == [*extra, "--index-strategy", "unsafe-best-match", "torch"]
    assert "--extra-index-url" not in PIP.command(INSTALL)
    assert "--extra-index-url" not in Installer(PYTHON, None, None, None).command(torch)


def test_removing_and_importing() -> None:
    """Nobody is asked; an engine is imported by the environment's interpreter, whoever installed it."""
    remove, bring = Step("remove", ("a", "b")), Step("import", ("a",))
    assert PIP.command(remove) == ["/env/bin/python", "-I", "-m", "pip", "uninstall", "--yes", "a", "b"]
    assert UV.command(remove) == ["/bin/uv", "pip", "uninstall", "--python", "/env/bin/python", "a", "b"]
    assert PIP.command(bring) == UV.command(bring) == ["/env/bin/python", "-I", "-c", "import a"]
