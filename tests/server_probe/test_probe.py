"""A whole probe of toy servers: the boundary found, the cache seen through, whatever the server is willing to tell."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from gptq_diff.server_probe.address import read_address
from gptq_diff.server_probe.answers import Endpoint
from gptq_diff.server_probe.exchange import Exchange
from gptq_diff.server_probe.order import Order
from gptq_diff.server_probe.probe import Plan
from gptq_diff.server_probe.report import ProbeReport
from gptq_diff.server_probe.summary import Status
from gptq_diff.server_probe.witness import Kind
from tests.server_probe.toy_server import Handler, Toy, serving


def probe(toy: Toy, endpoint: Endpoint | None = None, plan: Plan = Plan(), timeout: float = 5.0) -> ProbeReport:  # noqa: B008  frozen
    with serving(toy) as url:
        order = Order(read_address(url), Exchange(), None, endpoint, plan, timeout, 60.0)
        return order.probe(random.Random(3), lambda line: None)


@pytest.mark.parametrize(
    ("limit", "endpoint"), [(50, None), (51, None), (37, None), (50, Endpoint.COMPLETIONS), (24, Endpoint.COMPLETIONS)]
)
def test_the_boundary_is_found_to_the_token(limit: int, endpoint: Endpoint | None) -> None:
    """Whatever it is, through both endpoints, and by the server's own counts."""
    report = probe(Toy(collapses_up_to=limit), endpoint)
    assert (report.status, report.endpoint) == (Status.COLLAPSED, "completions" if endpoint else "chat")
    assert (report.lengths.collapsed_max, report.lengths.healthy_min) == (limit, limit + 1)
    assert report.summary == f"collapsed at up to {limit} prompt tokens, healthy from {limit + 1} on"


def test_a_healthy_server() -> None:
    """Every length asked twice, the default system prompt too, a prefix cached on purpose; no boundary looked for."""
    toy = Toy()
    report = probe(toy)
    assert (report.status, report.notes, report.ended) == (Status.HEALTHY, [], None)
    assert report.summary.startswith("healthy at ")
    kinds = Counter(each.kind for each in report.witnesses)
    assert kinds == {Kind.LENGTH: 12, Kind.DEFAULT_SYSTEM: 2, Kind.PRIMER: 1, Kind.CACHED: 1}
    assert toy.most_at_once == 1, "one question at a time: rows of others would be added"
    assert any(len(body["messages"]) == 1 for body in toy.asked)


def test_lengths_are_met() -> None:
    """What was asked for is what the server counts, by /tokenize before the first question or learnt from the answers;
    the shortest is what it is."""
    for toy in (Toy(tokenize=True), Toy()):
        report = probe(toy, Endpoint.COMPLETIONS)
        tokens = sorted({each.tokens for each in report.witnesses if each.kind is Kind.LENGTH})
        assert tokens[1:] == [32, 48, 64, 128, 256]
        assert tokens[0] is not None
        assert tokens[0] < 24


def test_a_prefix_cache_does_not_answer_for_the_kernel() -> None:
    """With it the toy hides the failure from whoever asks a long question first, and spoils a long one after a short
    one: both are shown on purpose, and the boundary is as sharp as without."""
    report = probe(Toy(collapses_up_to=50, prefix_cache=True))
    assert (report.lengths.collapsed_max, report.lengths.healthy_min) == (50, 51)
    assert (report.state_of(Kind.CACHED), report.state_of(Kind.SPOILT)) == ("healthy", "collapsed")
    assert len(report.notes) == 2
    assert "a prefix cache hides" in report.notes[0]
    assert "what the failure left" in report.notes[1]
    cached = next(each for each in report.witnesses if each.kind is Kind.CACHED)
    assert cached.answer is not None
    assert cached.answer.cached_tokens


def test_without_salt_the_mark_alone_keeps_prompts_apart() -> None:
    """A server that is not vLLM: the same verdict; only the default system prompt, which is the same each time, may be
    answered for by the cache."""
    report = probe(Toy(collapses_up_to=50, prefix_cache=True, extras=False))
    assert report.status is Status.COLLAPSED
    lengths = [each for each in report.witnesses if each.kind in (Kind.LENGTH, Kind.BOUNDARY) and each.tokens]
    assert max(each.tokens for each in lengths if each.state.value == "collapsed") == 50
    assert min(each.tokens for each in lengths if each.state.value == "healthy") == 51


def test_without_a_prefix_cache_both_are_as_the_kernel_is() -> None:
    """Nothing is said of a cache then."""
    report = probe(Toy(collapses_up_to=50))
    assert (report.state_of(Kind.CACHED), report.state_of(Kind.SPOILT)) == ("collapsed", "healthy")
    assert report.notes == []


@pytest.mark.parametrize(
    "toy",
    [
        Toy(collapses_up_to=50, bang="<pad>"),
        Toy(collapses_up_to=50, visible=False),
        Toy(collapses_up_to=50, logprobs="nan"),
        Toy(collapses_up_to=50, logprobs="null"),
        Toy(collapses_up_to=50, logprobs="500"),
        Toy(collapses_up_to=50, logprobs="400"),
        Toy(collapses_up_to=50, logprobs="none"),
        Toy(collapses_up_to=50, strict=True, extras=False),
        Toy(collapses_up_to=50, strict=True, extras=False, logprobs="none"),
        Toy(collapses_up_to=50, system_role=False),
        Toy(collapses_up_to=50, chat=False),
        Toy(collapses_up_to=50, usage=False, tokenize=True),
        Toy(collapses_up_to=50, visible=False, extras=False, logprobs="null"),
        Toy(collapses_up_to=50, visible=False, extras=False, logprobs="500"),
        Toy(collapses_up_to=50, visible=False, logprobs="400"),
    ],
    ids=[
        "another token", "invisible, with ids", "NaN", "null", "500 for NaN", "400 for NaN", "no logprobs",
        "refuses vLLM's fields", "refuses logprobs too", "no system role", "no chat", "no counts but /tokenize",
        "invisible, null", "invisible, 500", "invisible, 400",
    ],
)  # fmt: skip
def test_whatever_the_server_tells(toy: Toy) -> None:
    """The same verdict and boundary from ids, tokens, text or missing log probabilities."""
    report = probe(toy)
    assert report.summary == "collapsed at up to 50 prompt tokens, healthy from 51 on"
    assert ("as with vLLM" in " ".join(report.notes)) == (toy.logprobs in ("500", "400"))


def test_a_server_that_tells_no_lengths() -> None:
    """Collapsed all the same, and no length is made up."""
    report = probe(Toy(collapses_up_to=50, usage=False))
    assert report.status is Status.COLLAPSED
    assert report.lengths.collapsed_max is None
    assert "does not tell their lengths" in report.summary


def test_it_collapses_at_long_prompts_only() -> None:
    """The other direction, as a failing reconstruct path would have it."""
    report = probe(Toy(collapses_up_to=100, above=True))
    assert report.summary == "collapsed from 101 prompt tokens on, healthy up to 100"


def test_it_collapses_always() -> None:
    """As after a NaN in the weights."""
    report = probe(Toy(collapses_up_to=10_000))
    assert report.summary.startswith("collapsed at every length asked, ")
    assert report.lengths.healthy_min is None
    assert report.state_of(Kind.CACHED) is None, "nothing good is there to be cached"


def test_it_collapses_now_and_then() -> None:
    """Every fifth answer, whatever the length: no boundary is made of it."""

    def now_and_then(handler: Handler, number: int) -> bool:
        if number % 5 == 0:
            handler.send(200, {"choices": [{"message": {"content": "!" * 16}}], "usage": {"prompt_tokens": 100}})
        return number % 5 == 0

    report = probe(Toy(behave=now_and_then))
    assert report.status is Status.COLLAPSED
    assert "not by length alone" in report.summary


def refuse(status: int, short_only: bool = False, text: bytes = b"no") -> Toy:
    """A server that answers so, always or to prompts of up to 50 tokens."""
    toy = Toy()

    def behave(handler: Handler, number: int) -> bool:
        if not short_only or len(toy.tokens(toy.asked[-1])) <= 50:
            handler.send(status, text, "text/plain")
            return True
        return False

    toy.behave = behave
    return toy


@pytest.mark.parametrize(
    ("toy", "said"),
    [
        (
            refuse(500, text=b"Internal Server Error"),
            "4 questions in a row got no answer, the last: HTTP 500: Internal",
        ),
        (refuse(200, text=b"{]"), "what it answers cannot be used: it is no JSON: {]"),
        (refuse(200, text=b"<html>busy</html>"), "what it answers cannot be used: it is no JSON: a web page"),
        (refuse(400, text=b"model not loaded"), "HTTP 400: model not loaded"),
        (refuse(500, short_only=True), "could not be judged: "),
    ],
)
def test_a_server_in_trouble_is_not_judged(toy: Toy, said: str) -> None:
    """Neither healthy nor collapsed, and soon: with the server's own words."""
    report = probe(toy)
    assert report.status is Status.UNKNOWN
    assert said in report.summary
    assert len(toy.asked) < 60


def test_short_prompts_that_get_no_answer_are_no_health() -> None:
    """Long ones alone do not tell: 500 at up to 50 tokens may be what NaN ends in."""
    report = probe(refuse(500, short_only=True))
    assert report.lengths.healthy_min is not None
    assert report.lengths.healthy_min > 50
    assert "answers tell nothing, the first: HTTP 500: no" in report.summary


def test_a_slow_server() -> None:
    """Ends after two answers that did not come, not after twenty."""

    def hang(handler: Handler, number: int) -> bool:
        handler.toy.closed.wait(10)
        return True

    report = probe(Toy(behave=hang), timeout=0.3)
    assert report.status is Status.UNKNOWN
    assert "no whole answer within 0.3 s" in report.summary


def test_a_context_that_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths beyond it are not asked, and what fits is judged."""
    monkeypatch.setattr("gptq_diff.server_probe.find._chosen", lambda models, wanted: ("toy", 100))
    report = probe(Toy())
    assert report.status is Status.HEALTHY
    assert max(each.tokens or 0 for each in report.witnesses) <= 84


def test_an_answer_that_ends_at_once_is_asked_to_go_on() -> None:
    """A token 0 that is the end of the text looks like an empty answer; vLLM can be told to go on past it."""
    toy = Toy(collapses_up_to=50)

    def ends(handler: Handler, number: int) -> bool:
        body = toy.asked[-1]
        count, _, bad = toy.run(body)
        if not bad:
            return False
        size = 16 if body.get("ignore_eos") else 1
        choice = {"message": {"content": ""}, "token_ids": [0] * size, "finish_reason": "stop"}
        handler.send(200, {"choices": [choice], "usage": {"prompt_tokens": count, "completion_tokens": size}})
        return True

    toy.behave = ends
    report = probe(toy)
    assert report.summary == "collapsed at up to 50 prompt tokens, healthy from 51 on"
    assert all(each.went_on for each in report.witnesses if each.state.value == "collapsed")
