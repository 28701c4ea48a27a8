from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import gptq_diff
from gptq_diff.errors import UsageError
from gptq_diff.stage import stage_package

SOURCE = Path(gptq_diff.__file__).parent


def modules(package: Path) -> dict[str, bytes]:
    return {str(p.relative_to(package)): p.read_bytes() for p in package.rglob("*.py")}


def test_it_holds_this_package_and_nothing_else(tmp_path: Path) -> None:
    """Site-packages beside it would let our torch shadow the engine's."""
    staged = stage_package(tmp_path)
    assert [p.name for p in staged.iterdir()] == ["gptq_diff"]
    assert modules(staged / "gptq_diff") == modules(SOURCE)
    assert {p.suffix for p in staged.rglob("*") if p.is_file()} == {".py", ".ptx"}


def test_a_worker_finds_the_kernel_that_looks_at_calls(tmp_path: Path) -> None:
    """It is read as a resource of the package, from the staged one."""
    staged = stage_package(tmp_path)
    code = (
        "from importlib.resources import files\n"
        "place = files('gptq_diff.capture.cuda').joinpath('seen.ptx')\n"
        "print(place, '.entry seen(' in place.read_text())"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(staged)}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [str(staged / "gptq_diff" / "capture" / "cuda" / "seen.ptx"), "True"]


def test_it_can_be_imported_from(tmp_path: Path) -> None:
    """A bare interpreter finds the worker there, and only there."""
    staged = stage_package(tmp_path)
    code = "import gptq_diff.jobs; print(gptq_diff.jobs.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(staged)}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(staged / "gptq_diff" / "jobs.py")


def test_the_same_content_is_staged_once(tmp_path: Path) -> None:
    """The directory, and so the compiled-code caches in it, stay valid between runs."""
    first = stage_package(tmp_path)
    compiled = first / "gptq_diff" / "__pycache__"
    compiled.mkdir()
    stamps = {p: p.stat().st_mtime_ns for p in first.rglob("*.py")}
    assert stage_package(tmp_path) == first
    assert compiled.is_dir()
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*.py")} == stamps


def test_other_content_is_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions never mix."""
    other = tmp_path / "other" / "gptq_diff"
    shutil.copytree(SOURCE, other)
    (other / "jobs.py").write_text("changed = True")
    first = stage_package(tmp_path / "cache")
    monkeypatch.setattr(gptq_diff, "__file__", str(other / "__init__.py"))
    second = stage_package(tmp_path / "cache")
    assert first != second
    assert modules(second / "gptq_diff") == modules(other)


def test_eight_at_once_leave_one_whole_directory(tmp_path: Path) -> None:
    """Runs that start together race for the name; whoever comes second uses the first one's copy."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: stage_package(tmp_path), range(8)))
    assert len(set(found)) == 1
    assert [p.name for p in (tmp_path / "stage").iterdir()] == [found[0].name]
    assert modules(found[0] / "gptq_diff") == modules(SOURCE)


@pytest.mark.parametrize("damage", ["missing", "empty", "changed", "folder gone"])
def test_damage_is_mended(tmp_path: Path, damage: str) -> None:
    """A copy cut short by a power loss, or by somebody who cleans up, must not break every run from then on."""
    staged = stage_package(tmp_path)
    victim = staged / "gptq_diff" / "engines" / "hf.py"
    if damage == "missing":
        victim.unlink()
    elif damage == "folder gone":
        shutil.rmtree(victim.parent)
    else:
        victim.write_text("" if damage == "empty" else "raise RuntimeError")
    assert stage_package(tmp_path) == staged
    assert modules(staged / "gptq_diff") == modules(SOURCE)
    assert [p.name for p in staged.rglob("part-*")] == []


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """The sentence names the directory, and the hint says how to choose another."""
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(UsageError, match=f"the cache directory {place} cannot be written: Not a directory") as e:
        stage_package(place)
    assert "XDG_CACHE_HOME" in str(e.value.hint)


def test_a_stage_that_is_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    """A file with the directory's name is no copy of the package."""
    staged = stage_package(tmp_path)
    shutil.rmtree(staged)
    staged.write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        stage_package(tmp_path)
    assert [p.name for p in (tmp_path / "stage").iterdir()] == [staged.name]
