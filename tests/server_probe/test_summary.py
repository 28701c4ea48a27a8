"""What all answers together say: one sentence, a status, notes; each acts and stays silent where it should."""

from __future__ import annotations

import pytest

from gptq_diff.server_probe.answers import Answer
from gptq_diff.server_probe.collapse import State, Verdict
from gptq_diff.server_probe.summary import Status, lengths_of, notes_of, status_of, summary_of
from gptq_diff.server_probe.witness import Kind, Witness, second_look


def witness(state: str, tokens: int | None, kind: Kind = Kind.LENGTH, cached: int | None = None) -> Witness:
    answer = Answer("a", prompt_tokens=tokens, cached_tokens=cached)
    return Witness(kind, tokens or 0, Verdict(State(state), "seen"), answer)


def of(states: str, kind: Kind = Kind.LENGTH) -> list[Witness]:
    """`c30 h60 u70`: collapsed at 30 tokens, healthy at 60, unjudged at 70."""
    names = {"c": "collapsed", "h": "healthy", "u": "unjudged"}
    return [witness(names[each[0]], int(each[1:]), kind) for each in states.split()]


@pytest.mark.parametrize(
    ("states", "status", "summary"),
    [
        ("h30 h200", "healthy", "healthy at 30 to 200 prompt tokens"),
        ("h30 u30 h200", "healthy", "healthy at 30 to 200 prompt tokens"),
        ("c30 h200", "collapsed", "collapsed at up to 30 prompt tokens, healthy from 200 on"),
        ("c30 u40 h51 c50", "collapsed", "collapsed at up to 50 prompt tokens, healthy from 51 on"),
        ("h30 c200", "collapsed", "collapsed from 200 prompt tokens on, healthy up to 30"),
        ("c30 c200", "collapsed", "collapsed at every length asked, 30 to 200 prompt tokens"),
        ("c30 h40 c50", "collapsed", "collapsed at 2 of 3 prompts, between 30 and 50 tokens; not by length alone"),
        ("h30 u200", "unknown", "could not be judged: 1 of 2 answers tell nothing, the first: seen"),
        ("u30", "unknown", "could not be judged: 1 of 1 answers tell nothing, the first: seen"),
        ("", "unknown", "could not be judged: no question was answered"),
    ],
)
def test_by_length(states: str, status: str, summary: str) -> None:
    """Healthy only where each length could be judged."""
    assert status_of(of(states), None) is Status(status)
    assert summary_of(of(states), None) == summary


def test_a_probe_that_ended_early_is_never_healthy() -> None:
    """It may have missed the lengths that fail; a collapse that it has seen stays one."""
    assert status_of(of("h30"), "too slow") is Status.UNKNOWN
    assert summary_of(of("h30"), "too slow") == "could not be judged: too slow"
    assert status_of(of("h30 c20"), "too slow") is Status.COLLAPSED
    assert "the probe ended early: too slow" in notes_of(of("h90 c20"), "too slow")


def test_only_behind_a_cache() -> None:
    """New prompts are well and one that begins as an earlier one did is not: the cache holds rubbish."""
    seen = [*of("h30 h200"), *of("c48", Kind.CACHED)]
    assert summary_of(seen, None) == "collapsed only where a prefix cache holds the beginning of an earlier prompt"


def test_what_a_cache_answered_for_draws_no_boundary() -> None:
    """Of such a prompt the kernel saw fewer rows than it has tokens."""
    seen = [*of("c30 h60"), witness("healthy", 40, Kind.DEFAULT_SYSTEM, cached=16)]
    assert lengths_of(seen).healthy_min == 60
    assert any("cache answered for 16 tokens" in note for note in notes_of(seen, None))


def test_short_prompts_that_could_not_be_asked() -> None:
    """A long template leaves the lengths that fail out of reach: healthy is not the whole truth then."""
    assert any("ask again with --endpoint completions" in note for note in notes_of(of("h60 h200"), None))
    assert notes_of(of("h50 h200"), None) == []


@pytest.mark.parametrize(
    ("status", "code"), [(Status.HEALTHY, 0), (Status.COLLAPSED, 1), (Status.UNKNOWN, 3)]
)  # fmt: skip
def test_exit_codes(status: Status, code: int) -> None:
    """Of contract.md."""
    assert status.exit_code == code


def unseen(
    logprobs: tuple[float | None, ...] | None, text: str = "", failed: bool = False, tokens: int = 16
) -> Witness:
    answer = Answer(text, logprobs=logprobs, completion_tokens=tokens)
    return Witness(Kind.LENGTH, 1, Verdict(State.UNJUDGED, "16 tokens and no text"), answer, failed)


GOOD = Witness(Kind.LENGTH, 2, Verdict(State.HEALTHY, "fine"), Answer("a b", logprobs=(-0.5, -0.1)))


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        ([unseen((None,) * 16), GOOD], "collapsed"),
        ([unseen(None, failed=True), GOOD], "collapsed"),
        ([unseen((None,) * 16)], "unjudged"),
        ([unseen(None), GOOD], "unjudged"),
        ([unseen((None, -1.0)), GOOD], "unjudged"),
        ([unseen((None,) * 16, text="aaa"), GOOD], "unjudged"),
        ([unseen(None, failed=True, tokens=0), GOOD], "unjudged"),
    ],
)
def test_a_second_look(seen: list[Witness], state: str) -> None:
    """Missing log probabilities are NaN only where there is no text either and the server has them elsewhere."""
    assert second_look(seen)[0].state.value == state
    assert second_look(seen)[1:] == seen[1:]
