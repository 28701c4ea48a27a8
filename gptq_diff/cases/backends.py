"""Which backends a case runs here, or why it is skipped."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptq_diff.cases.case import Case
from gptq_diff.hosts import look_around
from gptq_diff.presets import BackendRequest, parse_backends, preset_named
from gptq_diff.session.asked import CACHING

OWN = "transformers"
"""The engine that runs in gptq-diff's own interpreter."""
NO_PREFIX_CACHE = "it needs a backend with a prefix cache, as vLLM's are"


@dataclass(frozen=True)
class Chosen:
    """requests: what to run, the reference among it. reason: why nothing is run; "" where something is.

    skipped: backend -> why it cannot run here.
    """

    requests: tuple[BackendRequest, ...]
    reason: str = ""
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> str:
        """As --backends has them."""
        return ",".join(r.preset.name + (f"@{r.python}" if r.python else "") for r in self.requests)


def choose_backends(case: Case, override: str | None, interpreter: str | None) -> Chosen:
    """The case's own backends, all of which must run here, or what was asked for instead.

    interpreter: given to backends that name none and are not of the transformers engine.
    """
    requests = parse_backends(override if override is not None else ",".join(case.backends))
    if interpreter is not None:
        requests = tuple(_under(request, interpreter) for request in requests)
    if case.reference not in {r.preset.name for r in requests}:
        requests = (BackendRequest(preset_named(case.reference)), *requests)
    if case.prefix_cache and not any(request.preset.engine in CACHING for request in requests):
        return Chosen(requests, NO_PREFIX_CACHE)
    here, skipped = look_around(), {}
    for request in requests:
        support = here.host_of(request.preset).support
        if request.python is None and not support.ok:
            skipped[request.preset.name] = support.reason
    reason = "; ".join(f"{name} {why}" for name, why in skipped.items())
    return Chosen(requests, reason, skipped)


def _under(request: BackendRequest, interpreter: str) -> BackendRequest:
    if request.python is not None or request.preset.engine == OWN:
        return request
    return BackendRequest(request.preset, interpreter)
