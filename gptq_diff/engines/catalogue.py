"""Which class stands behind an engine's name."""

from __future__ import annotations

from typing import Callable

from gptq_diff.engines.base import Engine, LoadSpec
from gptq_diff.errors import BackendError


def engine_named(name: str) -> Callable[[LoadSpec], Engine]:
    """What loads a model into that engine; imports only that engine's packages."""
    if name == "transformers":
        from gptq_diff.engines.hf import HfEngine
        from gptq_diff.engines.original import OriginalEngine

        return lambda spec: OriginalEngine(spec) if spec.original is not None else HfEngine(spec)
    if name == "vllm":
        from gptq_diff.engines.vllm_engine import VllmEngine

        return VllmEngine
    if name == "auto_gptq":
        from gptq_diff.engines.auto_gptq_engine import AutoGptqEngine

        return AutoGptqEngine
    if name == "gptqmodel":
        from gptq_diff.engines.gptqmodel_engine import GptqModelEngine

        return GptqModelEngine
    raise BackendError(f"there is no engine called {name!r}", "see `gptq-diff backends`")


def prepare_engine(spec: LoadSpec) -> None:
    """Import what loading with that spec will need, without a look at GPU or checkpoint; ImportError as it comes."""
    if spec.engine == "vllm":
        from gptq_diff.engines.vllm_engine import import_vllm

        import_vllm(spec)
    else:
        engine_named(spec.engine)
