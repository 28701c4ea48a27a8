"""What an outcome depends on: one of the same key need not be found out again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from gptq_diff.cases.backends import Chosen
from gptq_diff.cases.case import Case
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.environment import environment
from gptq_diff.environments.find import installed_in, site_packages
from gptq_diff.session.loads import cache_dir
from gptq_diff.session.prepare import prepare_backend
from gptq_diff.stage import stage_package


def key_of(case: Case, chosen: Chosen, models: Sequence[Path], *circumstances: object) -> tuple[str, str]:
    """(sha256 over all that an outcome depends on, the fingerprint of the first model).

    That is the case, our own code, every interpreter's packages, the checkpoints, and the circumstances given.
    """
    fingerprints = [_fingerprint(model) for model in models]
    interpreters = {}
    for request in chosen.requests:
        backend = prepare_backend(request)
        interpreters[backend.name] = [backend.python, packages_of(Path(backend.python))]
    depends = {
        "case": case.digest, "gptq_diff": stage_package(cache_dir()).name, "environment": environment(),
        "interpreters": interpreters, "fingerprints": fingerprints, "circumstances": circumstances,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest(), fingerprints[0]


def _fingerprint(model: Path) -> str:
    with open_checkpoint(model) as checkpoint:
        return checkpoint.fingerprint()


def packages_of(python: Path) -> dict[str, str]:
    """Version of everything in the environment that this interpreter belongs to; nothing is started."""
    return installed_in(site_packages(python.parent.parent))
