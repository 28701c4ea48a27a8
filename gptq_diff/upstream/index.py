"""The package index, asked through `unearth`: which releases there are, and the source distribution of one.

pip cannot fetch these source distributions: it runs their build to learn their metadata.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
from packaging.version import InvalidVersion, Version
from unearth import PackageFinder
from unearth.errors import HashMismatchError, UnpackError, URLError
from unearth.fetchers import PyPIClient
from unearth.preparer import download_link

from gptq_diff.errors import GptqDiffError, UsageError
from gptq_diff.releases import Release
from gptq_diff.text import one_line

if TYPE_CHECKING:
    from unearth import Package

    from gptq_diff.upstream.installer import Installer

_PASSWORD = re.compile(r"//[^/\s@]*@")
"""Who signs in at an index, and how: not for a terminal."""
_SETTINGS = "the index is where pip is set to look: pip config list"


@dataclass(frozen=True)
class Listed:
    """One release in an index. yanked: withdrawn by its authors; pre: a pre-release or a development release."""

    version: str
    yanked: bool
    pre: bool


def releases(package: str, installer: Installer, *, sdist: bool = False) -> list[Listed]:
    """Every release of the package that the index has, the oldest first; sdist: those with a source distribution.

    Whether a file would install here is not asked. GptqDiffError where the index has none, or does not answer.
    """
    with _finder(package, installer, sdist=sdist) as finder:
        found: dict[Version, list[Package]] = {}
        for one in finder.find_all_packages(package, allow_yanked=True):
            version = _version(one.version)
            if version is not None:
                found.setdefault(version, []).append(one)
    return [
        Listed(str(version), all(one.link.is_yanked for one in found[version]), version.is_prerelease)
        for version in sorted(found)
    ]


def _version(text: str | None) -> Version | None:
    try:
        return Version(text or "")
    except InvalidVersion:
        return None


def fetch_sdist(release: Release, installer: Installer, folder: Path) -> Path:
    """Download its source distribution, held against the hash that the index states.

    GptqDiffError where there is none, the index does not answer, states no hash, or the file has another.
    """
    with _finder(str(release), installer, sdist=True) as finder:
        found = finder.find_matches(str(release), allow_yanked=True, allow_prereleases=True)
        best = next(iter(found), None)
        if best is None:
            raise GptqDiffError(f"the package index has no source distribution of {release}", _SETTINGS)
        hashes = best.link.hash_option
        if not hashes and not best.link.is_file:
            raise GptqDiffError(
                f"the package index states no hash of {best.link.filename}", "fetch it yourself, and give --sdist FILE"
            )
        return download_link(finder.session, best.link, folder, hashes)


@contextmanager
def _finder(what: str, installer: Installer, *, sdist: bool) -> Iterator[PackageFinder]:
    """A finder with those settings; whatever goes wrong on the way to the index becomes a sentence."""
    if not installer.index_urls and not installer.find_links:
        raise UsageError(
            "pip is set to look nowhere (no-index without find-links)", "give --sdist FILE or --sources DIR"
        )
    heard = _Heard()
    logger = logging.getLogger("unearth.collector")
    logger.addHandler(heard)
    try:
        with PyPIClient(
            trusted_hosts=installer.trusted_hosts, verify=_verify(installer), cert=installer.client_cert,
            timeout=installer.timeout, proxy=installer.proxy, follow_redirects=True,
        ) as client:  # fmt: skip
            package = what.partition("==")[0]
            finder = PackageFinder(
                client, index_urls=installer.index_urls, find_links=installer.find_links,
                trusted_hosts=installer.trusted_hosts, ignore_compatibility=True, no_binary=[package] if sdist else [],
            )  # fmt: skip
            _sign_in(client, installer)
            yield finder
    except GptqDiffError as e:
        raise GptqDiffError(f"{e}{heard.why}", e.hint) from e
    except HashMismatchError as e:
        raise GptqDiffError(
            f"what was downloaded for {what} is not what the package index says it is: its hash differs",
            "nothing of it was kept; try again, and ask whoever runs the index if it stays so",
        ) from e
    except (httpx2.HTTPError, UnpackError, URLError, OSError, ValueError) as e:
        said = _PASSWORD.sub("//", one_line(str(e) or type(e).__name__, 200))
        raise GptqDiffError(f"the package index cannot be used for {what}: {said}", _SETTINGS) from e
    finally:
        logger.removeHandler(heard)


def _verify(installer: Installer) -> ssl.SSLContext | bool:
    if installer.cert is None:
        return True
    place = Path(installer.cert)
    if place.is_dir():
        return ssl.create_default_context(capath=str(place))
    return ssl.create_default_context(cafile=str(place))


def _sign_in(client: PyPIClient, installer: Installer) -> None:
    """User and password from the URLs, from .netrc or a keyring, as unearth's own client does."""
    from unearth.auth import MultiDomainBasicAuth

    client.auth = MultiDomainBasicAuth(prompting=False, index_urls=list(installer.index_urls))


class _Heard(logging.Handler):
    """What unearth warns of and goes on after: an index that does not answer looks like an empty one."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(_PASSWORD.sub("//", one_line(record.getMessage(), 200)))

    @property
    def why(self) -> str:
        """The first of them, in parentheses."""
        return f" ({self._lines[0]})" if self._lines else ""
