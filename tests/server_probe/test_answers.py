"""Every form in which servers answer is read, and what is no answer is refused with a reason."""

from __future__ import annotations

import json
import math

import pytest

from gptq_diff.server_probe.answers import Endpoint, NotAnAnswer, read_answer

CHAT, COMPLETIONS = Endpoint.CHAT, Endpoint.COMPLETIONS


def body(choice: object, **more: object) -> bytes:
    return json.dumps({"choices": [choice], **more}).encode()


def test_a_chat_of_vllm_with_all_it_tells() -> None:
    """Ids, tokens by their bytes, log probabilities, counts, what the cache answered for."""
    steps = [{"token": "\ufffd", "logprob": -0.5, "bytes": [226]}, {"token": "\ufffd", "logprob": -1, "bytes": [130]}]
    answer = read_answer(
        body(
            {
                "message": {"content": "é"},
                "token_ids": [5, 6],
                "logprobs": {"content": steps},
                "finish_reason": "stop",
            },
            usage={"prompt_tokens": 30, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 16}},
        ),
        CHAT,
    )
    assert (answer.ids, answer.logprobs, answer.finish) == ((5, 6), (-0.5, -1.0), "stop")
    assert answer.tokens is not None
    assert len(set(answer.tokens)) == 2, "two pieces of one character are two tokens"
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens, answer.length) == (30, 2, 16, 2)


def test_a_completion() -> None:
    """The older form of log probabilities."""
    answer = read_answer(
        body({"text": " a b", "logprobs": {"tokens": [" a", " b"], "token_logprobs": [None, -1]}}), COMPLETIONS
    )
    assert (answer.text, answer.tokens, answer.logprobs) == (" a b", (" a", " b"), (None, -1.0))
    assert (answer.ids, answer.prompt_tokens, answer.cached_tokens) == (None, None, None)


@pytest.mark.parametrize("word", [b"NaN", b'"NaN"', b'"nan"'])
def test_nan_in_json(word: bytes) -> None:
    """A bare word, as Python's json and Go's libraries may write it, or a string."""
    raw = b'{"choices": [{"text": "!", "logprobs": {"tokens": ["!"], "token_logprobs": [%s]}}]}' % word
    logprobs = read_answer(raw, COMPLETIONS).logprobs
    assert logprobs is not None
    assert logprobs[0] is not None
    assert math.isnan(logprobs[0])


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_reasoning_model_writes_elsewhere(field: str) -> None:
    """Its first tokens are no content, which is null then."""
    assert read_answer(body({"message": {"content": None, field: "Okay,"}}), CHAT).text == "Okay,"


@pytest.mark.parametrize(
    ("raw", "endpoint", "why"),
    [
        (b"", CHAT, "no JSON"),
        (b"<html>", CHAT, "no JSON"),
        (b"\xff\xfe", CHAT, "no JSON"),
        (b"[" * 100_000, CHAT, "no JSON"),
        (b"[1]", CHAT, "no JSON object"),
        (b"{}", CHAT, "no choices"),
        (b'{"choices": []}', CHAT, "no choices"),
        (b'{"choices": {"0": 1}}', CHAT, "no choices"),
        (b'{"choices": ["a"]}', CHAT, "no choices"),
        (b'{"choices": [{"text": "a"}]}', CHAT, "no text"),
        (b'{"choices": [{"message": {"content": "a"}}]}', COMPLETIONS, "no text"),
    ],
)
def test_what_is_no_answer(raw: bytes, endpoint: Endpoint, why: str) -> None:
    """With the reason."""
    with pytest.raises(NotAnAnswer, match=why):
        read_answer(raw, endpoint)


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "a", "token_ids": ["1"]},
        {"text": "a", "token_ids": {"0": 1}},
        {"text": "a", "logprobs": [1]},
        {"text": "a", "logprobs": {"content": ["a"]}},
        {"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": 3}},
    ],
)
def test_odd_fields_are_as_if_they_were_not_there(choice: dict[str, object]) -> None:
    """The text can still be judged."""
    answer = read_answer(body(choice, usage=[1]), COMPLETIONS)
    assert (answer.text, answer.ids, answer.tokens, answer.prompt_tokens) == ("a", None, None, None)
