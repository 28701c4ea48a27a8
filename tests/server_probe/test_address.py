"""What is taken for a base URL, and where the API is looked for below it."""

from __future__ import annotations

import pytest

from gptq_diff.errors import UsageError
from gptq_diff.server_probe.address import read_address


@pytest.mark.parametrize(
    ("given", "places"),
    [
        ("http://localhost:8000", ("http://localhost:8000/v1", "http://localhost:8000")),
        ("http://localhost:8000/", ("http://localhost:8000/v1", "http://localhost:8000")),
        (" http://localhost:8000/v1/ ", ("http://localhost:8000/v1", "http://localhost:8000")),
        ("HTTPS://Models.Example/llm/v1", ("https://models.example/llm/v1", "https://models.example/llm")),
        ("http://[::1]:80/v1", ("http://[::1]:80/v1", "http://[::1]:80")),
    ],
)
def test_with_and_without_v1(given: str, places: tuple[str, str]) -> None:
    """Both forms that people copy from documentation lead to the same two places."""
    assert read_address(given).api_places == places


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("localhost:8000", "no http or https address"),
        ("ftp://host/v1", "no http or https address"),
        ("", "no http or https address"),
        ("http://", "no http or https address"),
        ("http://host:port/", "cannot be read"),
        ("http://host:99999/", "cannot be read"),
        ("http://[::1/", "cannot be read"),
        ("http://host/v1?api-version=1", "goes on after a ?"),
        ("http://host/a b", "blank"),
    ],
)
def test_what_is_no_address(given: str, said: str) -> None:
    """One sentence that says what is wrong, and how to write it."""
    with pytest.raises(UsageError, match=said.replace("?", r"\?")) as caught:
        read_address(given)
    assert "http://HOST:PORT" in str(caught.value.hint)


def test_a_password_in_it_is_refused_and_not_repeated() -> None:
    """Addresses are shown and logged."""
    with pytest.raises(UsageError) as caught:
        read_address("http://me:hunter2@host/v1")
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"
