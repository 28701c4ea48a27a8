"""Which releases lie between two, in which order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gptq_diff.bisection.versions import path_between
from gptq_diff.errors import UsageError
from gptq_diff.upstream.index import Listed

INDEX = [
    Listed("0.8.0", yanked=False, pre=False), Listed("0.9.0", yanked=False, pre=False),
    Listed("0.10.0rc1", yanked=False, pre=True), Listed("0.10.0", yanked=True, pre=False),
    Listed("0.10.2", yanked=False, pre=False), Listed("0.10.2.post1", yanked=False, pre=False),
    Listed("0.11.0", yanked=False, pre=False),
]  # fmt: skip


def listed() -> Sequence[Listed]:
    return INDEX


def path(good: str, bad: str, **more: bool) -> tuple[str, ...]:
    return path_between("vllm", good, bad, None, listed, **more)


def test_by_version_without_what_was_withdrawn_or_not_released() -> None:
    """0.10 comes after 0.9; nobody installs a yanked release or a candidate by accident."""
    assert path("0.8.0", "0.11.0") == ("0.8.0", "0.9.0", "0.10.2", "0.10.2.post1", "0.11.0")
    assert path("0.9.0", "0.10.2") == ("0.9.0", "0.10.2")


def test_those_count_where_they_are_asked_for() -> None:
    """By an option, or as an end."""
    assert path("0.9.0", "0.10.2", yanked=True, pre=True) == ("0.9.0", "0.10.0rc1", "0.10.0", "0.10.2")
    assert path("0.10.0", "0.10.2") == ("0.10.0", "0.10.2")


def test_from_bad_to_good_it_goes_back_in_time() -> None:
    """Then what is looked for is a repair."""
    assert path("0.10.2.post1", "0.9.0") == ("0.10.2.post1", "0.10.2", "0.9.0")


def test_named_versions_are_all_there_are() -> None:
    """The index is not asked; those outside of the two are left out."""

    def unasked() -> Sequence[Listed]:
        raise AssertionError("the index was asked")

    only = ["0.10.0", "0.9.5", "1.0"]
    assert path_between("vllm", "0.9.0", "0.11.0", only, unasked) == ("0.9.0", "0.9.5", "0.10.0", "0.11.0")


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("0.9.0", "0.9", "--good and --bad are both 0.9"),
        ("new", "0.9", "--good 'new' is not a version"),
        (
            "0.9.0",
            "0.10.22",
            "--bad 0.10.22: there is no such release of vllm; next to it there are 0.10.2.post1 and 0.11.0",
        ),
        ("0.9.0", "1.0", "--bad 1.0: there is no such release of vllm; next to it there is 0.11.0"),
    ],
)
def test_ends_that_cannot_be_are_refused(good: str, bad: str, said: str) -> None:
    """Before anything is installed."""
    with pytest.raises(UsageError) as caught:
        path(good, bad)
    assert str(caught.value).startswith(said)


def test_a_named_version_that_is_none_is_refused() -> None:
    """With the option's name."""
    with pytest.raises(UsageError, match="--versions 'latest' is not a version"):
        path_between("vllm", "1", "2", ["latest"], listed)
