"""The nouns of gptq-diff: frozen records that cross module borders. Standard library only, Python 3.9 syntax."""

from gptq_diff.records.asked import Preset, Prompt, PromptInfo, swept_prompt
from gptq_diff.records.found import Experiment, Finding, Headroom, PartialSums, RowRange, Workaround
from gptq_diff.records.judged import INTERVALS, Between, FirstBad, Judgement, RowMap
from gptq_diff.records.model import ORIGINAL, LayerSpec, ModelInfo, OriginalInfo, SkippedLayer, Support
from gptq_diff.records.report import (
    IntervalCount,
    LayerCount,
    LayerError,
    QuantizationError,
    Report,
    Result,
    SkippedBackend,
    Sweep,
    SweepRange,
    Verdict,
)

__all__ = [
    "INTERVALS",
    "ORIGINAL",
    "Between",
    "Experiment",
    "Finding",
    "FirstBad",
    "Headroom",
    "IntervalCount",
    "Judgement",
    "LayerCount",
    "LayerError",
    "LayerSpec",
    "ModelInfo",
    "OriginalInfo",
    "PartialSums",
    "Preset",
    "Prompt",
    "PromptInfo",
    "QuantizationError",
    "Report",
    "Result",
    "RowMap",
    "RowRange",
    "SkippedBackend",
    "SkippedLayer",
    "Support",
    "Sweep",
    "SweepRange",
    "Verdict",
    "Workaround",
    "swept_prompt",
]
