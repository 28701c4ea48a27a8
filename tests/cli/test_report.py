"""`gptq-diff report RUN`: a finished run shown again, anywhere, without the model and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_diff.judged_file import write_judged
from gptq_diff.report.json_report import write_report
from tests.report.build import LAYERS, a_report, a_result, judgements

Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """What a run leaves for its readers."""
    root = tmp_path / "run"
    root.mkdir()
    (root / "run.json").write_text('{"state": "finished"}')
    write_report(a_report(a_result("agree", "hf-fp32"), a_result("overflow")), root / "report.json")
    write_judged(root / "judged" / "sim-exllama" / "short.jsonl", judgements())
    (root / "logs").mkdir()
    (root / "logs" / "hf-fp32.log").write_bytes(b"\x1b[31mloading\xff\n")
    return root


def test_on_the_console(program: Program, finished: Path) -> None:
    """With the exit code of the run."""
    code, out, err = program("report", finished)
    assert (code, out) == (1, "")
    assert "verdict: overflow" in err
    assert LAYERS[5] in err


def test_as_json(program: Program, finished: Path) -> None:
    for arguments in (("--json",), ("--format", "json")):
        code, out, err = program("report", finished, *arguments)
        assert (code, err) == (1, "")
        assert out == (finished / "report.json").read_text()


def test_verbose_shows_every_linear_and_the_logs(program: Program, finished: Path) -> None:
    _, _, err = program("report", finished, "--verbose")
    assert all(layer in err for layer in LAYERS)
    assert "--- hf-fp32.log\nloading" in err
    assert "\x1b" not in err


@pytest.mark.parametrize(("format_", "start"), [("md", "### gptq-diff: overflow"), ("junit", "<?xml version=")])
def test_as_a_file(program: Program, finished: Path, tmp_path: Path, format_: str, start: str) -> None:
    """What -o writes is what stdout shows."""
    code, out, err = program("report", finished, "--format", format_)
    assert (code, err) == (1, "")
    assert out.startswith(start)
    code, nothing, err = program("report", finished, "--format", format_, "-o", tmp_path / "it")
    assert (code, nothing, err) == (1, "", "")
    assert (tmp_path / "it").read_text() == out


@pytest.mark.parametrize("format_", ["md", "json", "junit"])
def test_redacted(program: Program, finished: Path, format_: str) -> None:
    """As it may be shared: without the model's path, what backends wrote, and prompts' own names."""
    code, out, _ = program("report", finished, "--format", format_, "--redact")
    assert code == 1
    assert "p1" in out
    assert not any(secret in out for secret in ("/models/m", "!!!!", "short"))
    _, out, _ = program("report", finished, "--format", format_, "--redact", "--include-prompts")
    assert "short" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--redact",), "--format html"),
        (("--include-prompts",), "goes with --redact"),
        (("--redact", "--format", "html"), "-o FILE"),
    ],
)
def test_options_that_do_not_go_together(
    program: Program, finished: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, _, err = program("report", finished, *arguments)
    assert code == 2
    assert said in err


def test_the_console_is_no_file(program: Program, finished: Path, tmp_path: Path) -> None:
    code, _, err = program("report", finished, "-o", tmp_path / "it")
    assert code == 2
    assert "Give --format" in err


def test_as_a_page(program: Program, finished: Path, tmp_path: Path) -> None:
    """Beside report.json, or where -o says; never on the terminal. Without importing torch or plotly's package."""
    code, out, _ = program("report", finished, "--format", "html")
    assert (code, out) == (1, "")
    page = (finished / "report.html").read_text()
    assert LAYERS[5] in page
    assert program("report", finished, "--format", "html", "-o", tmp_path / "other.html")[0] == 1
    assert (tmp_path / "other.html").read_text() == page
    (finished / "report.json").unlink()
    assert program("report", finished, "--format", "html")[0] == 3


def test_a_page_is_made_without_anything_heavy(finished: Path) -> None:
    """So that it starts fast, and works where there is no torch."""
    code = (
        "import sys\n"
        f"sys.argv = ['gptq-diff', 'report', {str(finished)!r}, '--format', 'html']\n"
        "from gptq_diff.cli.app import main\n"
        "try:\n    main()\n"
        "finally:\n    print({'torch', 'numpy', 'plotly', 'transformers'} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.endswith("set()\n"), done.stderr


def test_an_unfinished_run_says_what_to_do(program: Program, finished: Path) -> None:
    """3: there is no verdict yet."""
    (finished / "report.json").unlink()
    code, out, err = program("report", finished)
    assert (code, out) == (3, "")
    assert "the run was not finished" in err
    assert "gptq-diff compare" in err


def test_a_directory_that_is_no_run(program: Program, tmp_path: Path) -> None:
    code, _, err = program("report", tmp_path)
    assert code == 2
    assert "no run.json" in err


@pytest.mark.parametrize("format_", ["console", "json", "md", "junit"])
def test_torch_is_not_imported(finished: Path, format_: str) -> None:
    """Nor anything else that takes seconds, or that a machine without the model may lack."""
    code = (
        "import sys\n"
        f"sys.argv = ['gptq-diff', 'report', {str(finished)!r}, '--format', {format_!r}]\n"
        "from gptq_diff.cli.app import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'numba', 'safetensors', 'tokenizers'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("heavy: []\n"), done.stderr
    if format_ == "json":
        assert json.loads(done.stdout)["schema_version"] == 1
