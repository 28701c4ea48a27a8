"""The releases that lie between the good one and the bad one, in the order that leads from one to the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from gptq_diff.errors import UsageError

if TYPE_CHECKING:
    from gptq_diff.upstream.index import Listed


def path_between(
    package: str, good: str, bad: str, only: Sequence[str] | None, listed: Callable[[], Sequence[Listed]],
    *, yanked: bool = False, pre: bool = False,
) -> tuple[str, ...]:  # fmt: skip
    """From the good release to the bad one, both included; backwards in time where the bad one is the older.

    only: releases to be limited to, the index is not asked then. listed: asks it. yanked, pre: whether those count too;
    the two ends count whatever they are. UsageError for what is no version, or is not in the index.
    """
    first, last = _version(good, "--good"), _version(bad, "--bad")
    if first == last:
        raise UsageError(f"--good and --bad are both {first}", "give two releases between which something changed")
    if only is not None:
        known = {_version(text, "--versions") for text in only} | {first, last}
    else:
        found = {Version(one.version): one for one in listed()}
        for end, option in ((first, "--good"), (last, "--bad")):
            if end not in found:
                raise UsageError(
                    f"{option} {end}: there is no such release of {package}{_next_to(end, found)}",
                    "give one that the package index has, or all of them with --versions",
                )
        known = {v for v, one in found.items() if (yanked or not one.yanked) and (pre or not one.pre)} | {first, last}
    low, high = min(first, last), max(first, last)
    path = sorted(version for version in known if low <= version <= high)
    return tuple(str(version) for version in (path if first < last else reversed(path)))


def _next_to(version: Version, found: Collection[Version]) -> str:
    """`; next to it there are A and B`: the releases before and after one that there is not."""
    before = max((one for one in found if one < version), default=None)
    after = min((one for one in found if one > version), default=None)
    names = [str(one) for one in (before, after) if one is not None]
    return f"; next to it there {'is' if len(names) == 1 else 'are'} {' and '.join(names)}" if names else ""


def _version(text: str, option: str) -> Version:
    try:
        return Version(text.strip())
    except InvalidVersion:
        raise UsageError(f"{option} {text!r} is not a version", "write it as pip does: 0.20.2") from None
