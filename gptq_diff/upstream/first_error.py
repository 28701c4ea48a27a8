"""The first error in what compilers, linkers and the loader said: all that follows is mostly its consequence."""

from __future__ import annotations

import re

from gptq_diff.text import clean, one_line

LENGTH = 300
"""Characters of it that are quoted."""
_ERROR = re.compile(
    r"\b(?:fatal )?error\s*(?:#\d+|C\d+)?\s*:|nvcc fatal|catastrophic error|undefined (?:symbol|reference)"
    r"|cannot find -l|: not found$|No such file or directory|Killed|out of memory",
    re.IGNORECASE,
)
_FOLDERS = re.compile(r"(?:/[^\s:()/]+)+/(?=[^\s:()/]+[:(])")


def first_error(text: str) -> str:
    """That line, cleaned and without the folders before a file's name; "" where nothing looks like an error."""
    for line in clean(text).splitlines():
        if _ERROR.search(line):
            return one_line(_FOLDERS.sub("", line), LENGTH)
    return ""
