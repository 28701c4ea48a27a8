"""Text inside XML 1.0, which cannot hold every character, escaped or not."""

from __future__ import annotations

import re

from gptq_diff.text import clean

_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def fit(text: str) -> str:
    """The cleaned text without what XML cannot hold."""
    return _NOT_XML.sub("", clean(text))
