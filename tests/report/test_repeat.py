"""Commands that make a run again: what they say is what `run` takes."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from gptq_diff.records import ModelInfo, OriginalInfo, Report, Sweep
from gptq_diff.report.redacted_model import UNNAMED
from gptq_diff.report.repeat import NEW_TOKENS, commands, prompt_line
from gptq_diff.session.asked import Asked
from tests.report.build import a_report, a_result


def report_of(path: str, steps: int = NEW_TOKENS) -> Report:
    results = [replace(a_result("agree", b, p), steps=steps) for b in ("hf-fp32", "sim-gptq") for p in ("a", "b")]
    report = a_report(*results)
    return replace(report, model=replace(report.model, path=path), original_model=None)


def options(report: Report) -> dict[str, str]:
    """The run's options by name."""
    words = shlex.split(commands(report)[-1])
    assert words[:2] == ["gptq-diff", "run"]
    return dict(zip(words[2::2], words[3::2], strict=True))


def test_a_checkpoint_on_this_machine_is_named_by_its_path() -> None:
    """Quoted, since people have spaces in the names of folders."""
    report = report_of("/data/my models/it's 32B")
    assert options(report) == {
        "--model": "/data/my models/it's 32B", "--prompt-file": "prompts.jsonl", "--backends": "hf-fp32,sim-gptq",
    }  # fmt: skip
    assert len(commands(report)) == 1


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("Qwen/Qwen2.5-32B-Instruct-GPTQ-Int4", "hf download Qwen/Qwen2.5-32B-Instruct-GPTQ-Int4 --local-dir model"),
        ("gptq-diff model build tiny-qwen2 --seed 1", "gptq-diff model build tiny-qwen2 --seed 1 --out model"),
        (UNNAMED, f"# model: {UNNAMED}, known to its owner by the fingerprint"),
    ],
)
def test_a_checkpoint_with_a_public_name_is_fetched_or_built_first(path: str, first: str) -> None:
    assert commands(report_of(path))[0] == first
    assert options(report_of(path))["--model"] == "model"


def test_what_was_asked_otherwise_than_usual() -> None:
    """Reference, other checkpoints, lengths, generated tokens."""
    report = report_of("/m", steps=3)
    assert options(report)["--max-new-tokens"] == "3"
    sound = replace(report.model, path="/models/sound")
    more = replace(
        report, reference="hf-fp16", reference_model=sound, original_model=OriginalInfo("/o", "X", "ab" * 32),
        sweeps=(Sweep("sim-gptq", "a", 1, 64, 3, ()), Sweep("hf-fp32", "a", 1, 64, 3, ())),
    )  # fmt: skip
    found = options(more)
    assert (found["--reference"], found["--reference-model"]) == ("hf-fp16", "/models/sound")
    assert (found["--original"], found["--sweep-tokens"]) == ("/o", "1:64:3")
    assert "--max-new-tokens" not in found


def test_the_default_number_of_tokens_is_the_programs() -> None:
    assert Asked.__dataclass_fields__["max_new_tokens"].default == NEW_TOKENS


def test_a_run_in_which_nothing_ran() -> None:
    """Still a command: that of the reference."""
    assert options(replace(a_report(), reference_model=None))["--backends"] == "hf-fp32"


def test_prompts_are_named_with_their_lengths() -> None:
    report = a_report()
    assert prompt_line(report) == "short (37 tokens), long (63 tokens)"
    many = replace(report, prompts=report.prompts * 6)
    assert prompt_line(many).endswith(" and 4 more")
    assert isinstance(many.model, ModelInfo)
