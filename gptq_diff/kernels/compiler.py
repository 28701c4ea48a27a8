"""Whether the simulators' compiled loops can run here; asked before anything of numba is imported."""

from __future__ import annotations

import functools
import importlib.util
import logging
import platform

_log = logging.getLogger(__name__)


def obstacle() -> str:
    """Why the compiled loops cannot run in this interpreter on this CPU; empty when they can."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    try:
        import numba
        from llvmlite import binding
    except ImportError as error:  # for example a numpy that this numba does not take
        return f"numba does not import ({error})"
    if numba.config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set"
    if platform.machine().lower() in {"x86_64", "amd64", "i386", "i686"}:
        features = binding.get_host_cpu_features()
        if not (features.get("f16c") and features.get("fma")):
            return "this CPU has no F16C and FMA instructions"
    return ""


@functools.lru_cache(maxsize=1)
def available() -> bool:
    """Whether the compiled loops can run; says once in the log when the slow loops must do."""
    reason = obstacle()
    if reason:
        _log.warning("The simulators run in plain numpy, some hundred times slower with the same bits: %s.", reason)
    return not reason
