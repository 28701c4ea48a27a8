"""`gptq-diff run` from end to end: what it prints where, what it leaves behind, how it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gptq_diff.report.json_report import read_report
from tests.report.test_json_report import SCHEMA
from tests.session.damage import DAMAGED_LAYER, damaged_copy
from tests.session.originals import original_of

Program = Callable[..., tuple[int, str, str]]
IDS = '{"id": "one", "token_ids": [510, 3, 4, 5]}\n'
FIVE = ["hf-fp32", "hf-fp16", "sim-exllama", "sim-reconstruct", "sim-gptq"]
OVERFLOWS = "model.layers.1.mlp.down_proj"


def checked(text: str) -> dict[str, Any]:
    """The one JSON document that the text is, held against the published schema."""
    report: dict[str, Any] = json.loads(text)
    jsonschema.validate(report, SCHEMA)
    return report


@pytest.mark.usefixtures("here")
class TestInThisProcess:
    def test_a_sound_model(self, program: Program, small_model: Path, tmp_path: Path) -> None:
        """All presets by default; exit 0; people's text on stderr alone."""
        prompts = tmp_path / "p.jsonl"
        prompts.write_text(IDS + '"What is the capital of France?"\n')
        code, out, err = program(
            "run", "--model", small_model, "--prompt-file", prompts, "--out", tmp_path / "run", "--max-new-tokens", 2
        )
        assert (code, out) == (0, "")
        assert "verdict: agree" in err
        assert "compared 14 of 14" in err
        report = checked((tmp_path / "run" / "report.json").read_text())
        assert [(r["backend"], r["prompt"]) for r in report["results"]] == [(b, p) for b in FIVE for p in ("one", "p2")]
        assert {r["layers"]["compared"] for r in report["results"]} == {14}
        assert report["model"]["quantized_linears"] == 14

    def test_a_broken_one_as_json(self, program: Program, shifted_model: Path, tmp_path: Path) -> None:
        """--json prints the report and nothing else, whatever the exit code."""
        code, out, err = program(
            "run", "--model", shifted_model, "--prompt-file", "-", "--json", "--backends", "sim-exllama", "--out",
            tmp_path / "run", stdin=IDS,
        )  # fmt: skip
        report = checked(out)
        assert code == 1
        assert err == ""
        assert out == (tmp_path / "run" / "report.json").read_text()
        broken = report["results"][1]
        assert (broken["status"], broken["collapsed"], broken["collapse_token"]) == ("overflow", True, 0)
        assert (broken["first_bad"]["layer"], set(broken["text"])) == (OVERFLOWS, {"!"})
        assert report["verdict"]["layer"] == OVERFLOWS

    def test_a_damaged_copy(self, program: Program, small_model: Path, tmp_path: Path) -> None:
        """--reference-model finds it out; the terminal names the layer."""
        damaged = damaged_copy(small_model, tmp_path / "damaged")
        code, _, err = program(
            "run", "--model", damaged, "--reference-model", small_model, "--prompt-file", "-", "--backends", "hf-fp16",
            stdin=IDS,
        )  # fmt: skip
        assert code == 1
        assert f"{DAMAGED_LAYER} is the first layer to break on hf-fp16" in " ".join(err.replace("│", " ").split())

    def test_the_unquantised_model(self, program: Program, small_model: Path, tmp_path: Path) -> None:
        """--original adds hf-original to what was named; the terminal says how far quantisation moves the outputs."""
        original = original_of(small_model, tmp_path / "original")
        code, out, err = program(
            "run", "--model", small_model, "--original", original, "--prompt-file", "-", "--backends", "hf-fp16",
            "--out", tmp_path / "run", stdin=IDS,
        )  # fmt: skip
        assert (code, out) == (0, "")
        assert "hf-original, one: quantisation itself changes a linear's output by" in err
        report = checked((tmp_path / "run" / "report.json").read_text())
        assert [r["backend"] for r in report["results"]] == ["hf-fp32", "hf-fp16", "hf-original"]
        assert report["original_model"]["path"] == str(original)
        assert set(report["results"][2]["quantization_error"]["layers"]) == {
            report["results"][2]["layers"]["skipped"][i]["layer"] for i in range(14)
        }

    def test_quiet(self, program: Program, small_model: Path) -> None:
        arguments = ("run", "--model", small_model, "--prompt-file", "-", "--backends", "hf-fp32", "--quiet")
        assert program(*arguments, stdin=IDS) == (0, "", "")

    def test_verbose(self, program: Program, shifted_model: Path, tmp_path: Path) -> None:
        """Every linear of the bad step, and the workers' logs."""
        arguments = ("--backends", "sim-exllama", "--verbose", "--out", tmp_path / "run")
        _, _, err = program("run", "--model", shifted_model, "--prompt-file", "-", *arguments, stdin=IDS)
        assert "linears 0 to 13 of 14 in step 0" in err

    def test_the_default_output_directory(self, program: Program, small_model: Path, tmp_path: Path) -> None:
        """gptq-diff-runs/UTC-TIME-ID, below where the user stands."""
        program("run", "--model", small_model, "--prompt-file", "-", "--backends", "hf-fp32", stdin=IDS)
        (made,) = (tmp_path / "cwd" / "gptq-diff-runs").iterdir()
        assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{4}", made.name)
        assert (made / "report.json").is_file()

    def test_a_relative_output_directory(self, program: Program, small_model: Path, tmp_path: Path) -> None:
        arguments = ("--backends", "hf-fp32", "--out", "some/where")
        program("run", "--model", small_model, "--prompt-file", "-", *arguments, stdin=IDS)
        assert read_report(tmp_path / "cwd" / "some" / "where" / "report.json").verdict.status == "agree"


def start(*arguments: object, cwd: Path, stdin: str = IDS) -> subprocess.Popen[str]:
    """The program as users start it, with worker processes of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gptq_diff", "run", *map(str, arguments)], cwd=cwd, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(stdin)
    process.stdin.close()
    process.stdin = None  # communicate() would flush it
    return process


class TestWithWorkers:
    """Each of these starts real processes and loads torch in them."""

    def test_interpreters_that_can_and_cannot(self, shifted_model: Path, tmp_path: Path) -> None:
        """@PYTHON that is our own works; one without torch costs its own backend, and the failure found wins (1)."""
        bare = tmp_path / "bare" / "bin" / "python"
        bare.parent.mkdir(parents=True)
        bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # sees no site-packages
        bare.chmod(0o755)
        backends = f"sim-exllama@{sys.executable},hf-fp16@{tmp_path / 'bare'}"
        process = start(
            "--model", shifted_model, "--prompt-file", "-", "--backends", backends, "--max-new-tokens", 2, "--json",
            "--out", tmp_path / "run", cwd=tmp_path,
        )  # fmt: skip
        out, err = process.communicate(timeout=120)
        report = checked(out)
        assert (process.returncode, err) == (1, "")
        assert [(r["backend"], r["status"]) for r in report["results"]] == [
            ("hf-fp32", "agree"),
            ("sim-exllama", "overflow"),
        ]
        (skipped,) = report["skipped_backends"]
        assert skipped["backend"] == "hf-fp16"
        assert "no module 'torch'" in skipped["reason"]
        assert (tmp_path / "run" / skipped["log"]).is_file()
        assert report["results"][0]["peak_private_bytes"] > 10_000_000

    def test_ctrl_c(self, small_model: Path, tmp_path: Path) -> None:
        """130, one sentence, run.json says interrupted, no worker is left, and the directory is free again."""
        arguments = ("--model", small_model, "--prompt-file", "-", "--backends", "hf-fp32", "--out", tmp_path / "run")
        process = start(*arguments, cwd=tmp_path)
        self.interrupt(process, tmp_path / "run" / "run.json")
        assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "interrupted"

    def test_ctrl_c_before_there_is_a_run(self, small_model: Path, tmp_path: Path) -> None:
        """The first worker is on its way by then: it is ended, and the directory can be given again as it was."""
        arguments = ("--model", small_model, "--prompt-file", "-", "--backends", "hf-fp32", "--out", tmp_path / "run")
        process = start(*arguments, cwd=tmp_path)
        self.interrupt(process, tmp_path / "run" / "logs" / "hf-fp32.log")
        state = tmp_path / "run" / "run.json"
        if not state.exists():  # else this process was slower than the program
            assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
        else:
            assert json.loads(state.read_text())["state"] == "interrupted"

    def interrupt(self, process: subprocess.Popen[str], once: Path) -> None:
        """Ctrl-C once that file is there: 130, one sentence."""
        for _ in range(6000):
            if once.exists():
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert "Traceback" not in err
        assert err.strip().splitlines()[-1] == "gptq-diff: interrupted"


@pytest.mark.slow
def test_the_unshifted_smollm2_agrees_everywhere(program: Program, tmp_path: Path) -> None:
    """The real model as it is: no false alarm on the demo's short and long prompts with any of the five backends."""
    from gptq_diff.cli.demo import LONG, SHORT
    from gptq_diff.models.build import build_model

    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"id": "short", "prompt": SHORT}, {"id": "long", "prompt": LONG}]))
    code, out, err = program("run", "--model", build_model("smollm2"), "--prompt-file", prompts, "--json")
    assert code == 0, err
    report = checked(out)
    assert [p["tokens"] for p in report["prompts"]] == [37, 64]
    assert {(r["status"], r["layers"]["compared"]) for r in report["results"]} == {("agree", 210)}
    assert len(report["results"]) == 10
    assert all("Paris" in r["text"] for r in report["results"])
