"""The API is found with and without /v1, the model chosen, and what is there instead is told."""

from __future__ import annotations

import pytest

from gptq_diff.errors import CannotJudge, UsageError
from gptq_diff.server_probe.address import read_address
from gptq_diff.server_probe.api_key import ApiKey
from gptq_diff.server_probe.exchange import Exchange
from gptq_diff.server_probe.find import find
from gptq_diff.server_probe.patience import Caller
from gptq_diff.server_probe.server import Found
from tests.server_probe.in_hand import Given, reply
from tests.server_probe.toy_server import Toy, serving


def found(toy: Toy, below: str = "", model: str | None = None, key: str | None = None) -> Found:
    with serving(toy) as url:
        exchange = Exchange(None if key is None else ApiKey(key))
        return find(Caller(exchange, 5, 20), read_address(url + below), model)


@pytest.mark.parametrize("below", ["", "/", "/v1", "/v1/"])
def test_with_and_without_v1(below: str) -> None:
    """And whose version it is."""
    toy = Toy()
    there = found(toy, below)
    assert (there.api, there.model, there.version) == (f"{toy.url}/v1", "toy", "0.0.toy")


def test_an_api_that_has_no_v1() -> None:
    """The second place that is looked at."""
    toy = Toy(below="/llm", extras=False)
    there = found(toy, "/llm")
    assert (there.api, there.version) == (f"{toy.url}/llm", None)


def test_the_wrong_place_says_what_is_there() -> None:
    """Both addresses that were tried, and how the right one looks."""
    with pytest.raises(
        CannotJudge, match=r"no OpenAI-compatible API is there: http\S+/wrong/v1/models answers HTTP 404"
    ) as e:
        found(Toy(), "/wrong")
    assert "/v1" in str(e.value.hint)


@pytest.mark.parametrize(
    ("models", "wanted", "said"),
    [
        (("a", "b"), None, "serves 2 models: a, b"),
        (("qwen2.5",), "qwen2-5", "no model qwen2-5; did you mean 'qwen2.5'"),
    ],
)
def test_the_model_has_to_be_named(models: tuple[str, ...], wanted: str | None, said: str) -> None:
    """Bad input, exit 2."""
    with pytest.raises(UsageError, match=said):
        found(Toy(models=models), model=wanted)


def test_a_model_that_is_named_and_there() -> None:
    """One of several."""
    assert found(Toy(models=("a", "b")), model="b").model == "b"


def test_no_model_at_all() -> None:
    """Nothing to judge."""
    with pytest.raises(CannotJudge, match="serves no model"):
        found(Toy(models=()))


def test_a_key_is_asked_for_and_not_repeated() -> None:
    """The toy puts it into its error, as OpenAI's API does."""
    for key in (None, "sk-wrong"):
        with pytest.raises(UsageError, match=r"wants another key \(HTTP 401") as caught:
            found(Toy(key="sk-right"), key=key)
        assert "sk-wrong" not in str(caught.value)
    assert found(Toy(key="sk-right"), key="sk-right").model == "toy"


@pytest.mark.parametrize(
    ("replies", "said"),
    [
        ((reply(200, b"<html>Sign in</html>"),) * 2, "answers a web page"),
        ((reply(200, b"hello"),) * 2, "answers hello"),
        ((reply(200, b'{"models": []}'),) * 2, "answers {"),
        ((reply(500, b'{"error": {"message": "CUDA error"}}'),), "HTTP 500: CUDA error"),
        ((reply(429, b"slow down"),) * 3, "no more questions for now"),
        ((reply(404), reply(404, b"nginx")), "answers HTTP 404, nothing; .* answers HTTP 404, nginx"),
    ],
)
def test_what_else_may_be_there(replies: tuple[object, ...], said: str) -> None:
    """A login page, another API, a server in trouble: each told in its own words."""
    given = Given(*replies)  # type: ignore[arg-type]
    with pytest.raises(CannotJudge, match=said):
        find(Caller(given, 5, 20, given.clock()), read_address("http://h"), None)


def test_an_api_without_a_list_of_models() -> None:
    """Is taken at the user's word, who named the model."""
    given = Given(reply(404, b"{}"), reply(404, b"{}"), reply(404, b"{}"))
    there = find(Caller(given, 5, 20, given.clock()), read_address("http://h"), "mine")
    assert there == Found("http://h/v1", "mine", None, None)


def test_vllm_tells_how_long_a_prompt_may_be() -> None:
    """max_model_len of its list."""
    given = Given(reply(200, b'{"data": [{"id": "m", "max_model_len": 64}, {"odd": 1}, 3]}'), reply(404))
    assert find(Caller(given, 5, 20, given.clock()), read_address("http://h"), None).context == 64
