"""`gptq-diff view RUN`: the page is made when it has to be, and opened, served, or at least named."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_diff.cli.serve import server_of
from gptq_diff.cli.view import has_display
from gptq_diff.judged_file import write_judged
from gptq_diff.report.json_report import write_report
from tests.report.build import a_report, a_result, judgements

Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    root = tmp_path / "run"
    root.mkdir()
    (root / "run.json").write_text('{"state": "finished"}')
    write_report(a_report(a_result("agree", "hf-fp32"), a_result("overflow")), root / "report.json")
    write_judged(root / "judged" / "sim-exllama" / "short.jsonl", judgements())
    return root


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser was asked to open."""
    found: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", lambda url: bool(found.append(url)) or True)
    return found


def test_opens_the_page(program: Program, finished: Path, opened: list[str]) -> None:
    """Made where it is missing, kept where it is fresh, made anew where report.json is younger."""
    page = finished / "report.html"
    assert program("view", finished)[0] == 0
    assert opened == [page.absolute().as_uri()]
    assert "<h1" in page.read_text()
    page.write_text("mine")
    assert program("view", finished)[0] == 0
    assert page.read_text() == "mine"
    os.utime(page, (1, 1))
    assert program("view", finished)[0] == 0
    assert "<h1" in page.read_text()


def test_without_a_display_the_path_is_said(program: Program, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    code, out, err = program("view", finished)
    assert (code, out) == (2, "")
    assert "no display" in err and "report.html" in err.replace("\n", "") and "--serve" in err
    assert (finished / "report.html").exists()


def test_who_has_a_display() -> None:
    assert has_display({}, "darwin") and has_display({"DISPLAY": ":1"}, "linux")
    assert not has_display({"DISPLAY": ""}, "linux")


def test_not_a_run_and_a_run_cut_short(program: Program, finished: Path, tmp_path: Path, opened: list[str]) -> None:
    """2 for no run; 3, and what to do, for one without a verdict."""
    assert program("view", tmp_path)[0] == 2
    (finished / "report.json").unlink()
    code, _, err = program("view", finished)
    assert code == 3
    assert "gptq-diff compare" in err
    assert opened == []


def test_serves_one_page_on_this_machine_alone(tmp_path: Path) -> None:
    """No other path, and not under another name that resolves here."""
    page = tmp_path / "report.html"
    page.write_text("<p>é</p>", encoding="utf-8")
    (tmp_path / "secret").write_text("x")
    with server_of(page, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            with urllib.request.urlopen(f"{address}/") as answer:
                assert answer.read().decode() == "<p>é</p>"
                assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            for path in ("/secret", "/../secret", "/report.html/../secret"):
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(address + path)
            asked = urllib.request.Request(f"{address}/", headers={"Host": "evil.example:80"})
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(asked)
            assert server.server_address[0] == "127.0.0.1"
        finally:
            server.shutdown()
            thread.join()


def test_a_port_that_is_taken(program: Program, finished: Path, tmp_path: Path) -> None:
    with server_of(finished / "report.html", 0) as taken:
        code, _, err = program("view", finished, "--serve", "--port", taken.server_port)
    assert code == 2
    assert "cannot be used" in err
