"""`gptq-diff probe-server` as it is typed: exit codes, one screen, JSON, watching, a key that shows nowhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server_probe.toy_server import Handler, Toy, free_port, serving

Program = Callable[..., tuple[int, str, str]]
SECRET = "sk-314159"


def test_a_healthy_server(program: Program) -> None:
    """Exit 0; all of it fits on a screen of 40 lines of 120 columns."""
    with serving(Toy()) as url:
        code, out, err = program("probe-server", "--base-url", url)
    assert (code, out) == (0, "")
    assert "healthy at " in err
    assert "model toy, chat" in err
    assert len(err.splitlines()) <= 40
    assert max(map(len, err.splitlines())) <= 120


def test_a_collapsed_server(program: Program) -> None:
    """Exit 1, the boundary, and what the answers were."""
    with serving(Toy(collapses_up_to=50, prefix_cache=True)) as url:
        code, _, err = program("probe-server", "--base-url", f"{url}/v1")
    assert code == 1
    assert "collapsed at up to 50 prompt tokens, healthy from 51 on" in err
    assert '16 tokens, all of them id 0 ("!!!!!!!!!!!!!!!!")' in err
    assert "a prefix cache hides the failure" in err
    assert len(err.splitlines()) <= 40


def test_json(program: Program) -> None:
    """Everything, in numbers; what a server wrote is stripped of what a terminal obeys."""
    with serving(Toy(collapses_up_to=50, bang="\x1b[31m", logprobs="nan", models=("to\x1b[2Jy",))) as url:
        code, out, err = program("probe-server", "--base-url", url, "--json")
    assert (code, err) == (1, "")
    told = json.loads(out)
    assert (told["schema_version"], told["status"], told["base_url"]) == (1, "collapsed", url)
    assert told["prompt_tokens"]["collapsed_max"] == 50
    assert told["server"]["model"] == "toy"
    assert "\\u001b" not in out
    answer = next(each for each in told["answers"] if each["state"] == "collapsed")
    assert answer["evidence"] == "the log probability of token 1 is NaN"
    assert (answer["token_ids"], answer["logprobs"][0], answer["finish_reason"]) == ([0] * 16, "nan", "length")


def test_nobody_there(program: Program) -> None:
    """Exit 3, in a sentence."""
    code, _, err = program("probe-server", "--base-url", f"http://127.0.0.1:{free_port()}", "--total-timeout", "2")
    assert code == 3
    assert "could not be judged" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base-url", "localhost:8000"], "no http or https address"),
        (["--base-url", "http://h", "--lengths", "a"], "no prompt lengths"),
        (["--base-url", "http://h", "--lengths", "0"], "no prompt lengths"),
        (["--base-url", "http://h", "--rounds", "2"], "about --watch"),
        (["--base-url", "http://h", "--keep-going"], "about --watch"),
        (["--base-url", "http://h", "--metrics-file", "no/where.prom"], "there is no folder"),
        (["--base-url", "http://h", "--api-key-file", "missing"], "missing"),
        (["--base-url", "http://h", "--api-key-env", "NOT_THERE"], "no variable NOT_THERE"),
        (["--base-url", "http://h", "--ca-file", "missing"], "missing"),
        ([], "base-url"),
    ],
)
def test_usage(arguments: list[str], said: str, program: Program) -> None:
    """Exit 2 before anything is asked."""
    code, _, err = program("probe-server", *arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_the_key_shows_nowhere(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file or a variable, in JSON, on the screen, in metrics, right or wrong, though the server repeats it."""
    (tmp_path / "key").write_text(f"{SECRET}\n")
    monkeypatch.setenv("MY_KEY", SECRET)
    metrics = tmp_path / "m.prom"
    for way in (("--api-key-file", tmp_path / "key"), ("--api-key-env", "MY_KEY")):
        for right in (SECRET, "sk-other"):
            toy = Toy(key=right)
            with serving(toy) as url:
                code, out, err = program(
                    "probe-server", "--base-url", url, *way, "--json", "--repeats", 1, "--metrics-file", metrics
                )
            assert code == (0 if right == SECRET else 2)
            assert all(each.get("Authorization") == f"Bearer {SECRET}" for each in toy.headers)
            assert SECRET not in out + err + metrics.read_text()


def test_a_key_that_is_taken_back_in_between(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that repeats the key in the middle of a probe: exit 2, hidden."""
    monkeypatch.setenv("MY_KEY", SECRET)

    def refuse(handler: Handler, number: int) -> bool:
        handler.send(403, {"error": {"message": f"no longer: {handler.headers['Authorization']}"}})
        return True

    with serving(Toy(behave=refuse)) as url:
        code, out, err = program("probe-server", "--base-url", url, "--api-key-env", "MY_KEY")
    assert code == 2
    assert "no longer: Bearer [key]" in err
    assert SECRET not in out + err


def test_watching_ends_with_a_collapse(program: Program, tmp_path: Path) -> None:
    """Healthy in the first round, collapsed in the second: exit 1 then, a line a round, metrics of the last."""
    toy = Toy()

    def turns(handler: Handler, number: int) -> bool:
        toy.collapses_up_to = 50 if number > 11 else 0
        return False

    toy.behave = turns
    metrics = tmp_path / "probe.prom"
    with serving(toy) as url:
        code, _, err = program(
            "probe-server", "--base-url", url, "--watch", 1, "--repeats", 1, "--metrics-file", metrics
        )
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == 2
    assert "Z healthy at" in lines[0]
    assert "Z collapsed at" in lines[1]
    assert "gptq_diff_probe_collapsed{" in metrics.read_text()
    assert "} 1.0\n" in metrics.read_text()


def test_watching_goes_on_where_it_is_told_to(program: Program) -> None:
    """--keep-going and --rounds: every round is told, as a line of JSON each; the worst is the exit code."""
    with serving(Toy(collapses_up_to=50)) as url:
        code, out, _ = program(
            "probe-server", "--base-url", url, "--watch", 1, "--rounds", 2, "--keep-going", "--repeats", 1, "--json"
        )
    assert code == 1
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["collapsed", "collapsed"]


def test_watching_outlives_a_server_that_is_away(program: Program) -> None:
    """A round that could not judge is told, and the next is asked; exit 3 in the end."""
    away = {"now": False}

    def locks(handler: Handler, number: int) -> bool:
        if number > 11 or away["now"]:
            away["now"] = True
            handler.toy.key = "another"
        return False

    with serving(Toy(behave=locks)) as url:
        code, _, err = program("probe-server", "--base-url", url, "--watch", 1, "--rounds", 3, "--repeats", 1)
    assert code == 3
    assert [line.split("Z ")[1].split(":")[0].split(" at")[0] for line in err.splitlines()][-1] == "could not be judged"
    assert len(err.splitlines()) == 3


def test_interrupted() -> None:
    """Ctrl-C ends it at once, in the middle of a question that nobody answers: 130, no traceback."""
    asked = threading.Event()

    def hang(handler: Handler, number: int) -> bool:
        asked.set()
        handler.toy.closed.wait(30)
        return True

    with serving(Toy(behave=hang)) as url:
        command = [sys.executable, "-m", "gptq_diff", "probe-server", "--base-url", url]
        done = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
        assert asked.wait(30)
        started = time.monotonic()
        done.send_signal(signal.SIGINT)
        _, err = done.communicate(timeout=20)
        assert time.monotonic() - started < 10
    assert done.returncode == 130
    assert "Traceback" not in err
