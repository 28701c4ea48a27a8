"""The end of a log as a sentence and as lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptq_diff.log_end import LINES, last_line, log_end


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("\n  \n", ""),
        ("first\nlast\n\n", "last"),
        ("progress 1\rprogress 2\r", "progress 2"),
        ("\x1b[31mred\x1b[0m \x07words", "red words"),
        ("x" * 1000, "x" * 299 + "…"),
        ("Traceback (most recent call last):\n  File 1\nValueError: bad\nnote", "ValueError: bad"),
        ("Traceback (most recent call last):\n  File 1\nKeyboardInterrupt\n", "KeyboardInterrupt"),
        (
            "[rank0]: Traceback (most recent call last):\n[rank0]:   File 1\n[rank0]: ValueError: bad\n"
            "[rank0]:[W1126 13:39:03.018342651 ProcessGroupNCCL.cpp:1575] Warning: destroy_process_group() was not",
            "ValueError: bad",
        ),
        (
            "Traceback (most recent call last):\n  File 1\nKeyError: 1\n\nDuring handling\n\n"
            "Traceback (most recent call last):\n  File 2\ntorch.OutOfMemoryError: CUDA out of memory.\n",
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
        ("Traceback (most recent call last):\n  File 1\n    cut off", "cut off"),
    ],
)
def test_last_line(tmp_path: Path, text: str, expected: str) -> None:
    """The line that says why, as one clean line of bounded length."""
    log = tmp_path / "log"
    log.write_bytes(text.encode())
    assert last_line(log) == expected


def test_last_line_reads_only_the_end_of_a_huge_log(tmp_path: Path) -> None:
    """A log of any size costs the same; one that is not there says nothing."""
    log = tmp_path / "log"
    with log.open("wb") as f:
        f.truncate(2**40)  # sparse
        f.seek(0, 2)
        f.write(b"\nthe end\n")
    assert last_line(log) == "the end"
    assert last_line(tmp_path / "none") == ""


def test_the_last_lines_that_say_something(tmp_path: Path) -> None:
    """From the worker's own start on, cleaned, as many as a report keeps."""
    log = tmp_path / "log"
    log.write_text("earlier\n" + "".join(f"line {n}\n\n" for n in range(50)) + "\x1b[2Jend\r\n")
    found = log_end(log, len("earlier\n"))
    assert len(found) == LINES
    assert found[-2:] == ("line 49", "end")
    assert log_end(log, log.stat().st_size) == ()
    log.write_text("earlier\nlater")
    assert log_end(log, len("earlier\n")) == ("later",)
    assert log_end(tmp_path / "none") == ()
