"""What a checkpoint may be called in what is shared: by a name that everybody can look up, else by its fingerprint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_PUBLISHERS = (
    "Qwen meta-llama mistralai google microsoft deepseek-ai HuggingFaceTB TheBloke ModelCloud RedHatAI neuralmagic "
    "nvidia openai ibm-granite tiiuae 01-ai internlm THUDM zai-org baichuan-inc bigcode EleutherAI allenai kaitchup "
    "hugging-quants TechxGenus jart25 iqbalamo93 JunHowie btbtyler09 facebook bigscience stabilityai NousResearch "
    "unsloth openbmb moonshotai MiniMaxAI LGAI-EXAONE CohereLabs"
)
PUBLISHERS = frozenset(_PUBLISHERS.split())
"""Whose repositories on the Hugging Face Hub may be named: a repository of anybody else may be a private one."""
ARCHITECTURES = re.compile(
    r"(?:Llama|Qwen\d?|Qwen\d(?:_\d)?(?:Moe|VL)?|Mistral|Mixtral|Gemma\d?|Phi\d?|GPT2|GPTNeoX|GPTJ|GPTBigCode|OPT|Bloom|"
    r"Falcon|Deepseek(?:V\d)?|InternLM\d?|Baichuan|ChatGLM|Glm\d?|Cohere\d?|Granite|Olmo\d?|StableLm|Starcoder\d?|MPT|Yi|"
    r"Exaone|MiniCPM\d?|SmolLM\d?)(?:ForCausalLM|ForConditionalGeneration|LMHeadModel|Model)"
)
BUILDS = frozenset({"smollm2", "tiny-qwen2", "synthetic-qwen2.5-32b"})
"""What `gptq-diff model build` knows."""
_OPTIONS: dict[str, str] = {
    "bits": r"[2348]", "group_size": r"-1|\d{1,5}", "hidden": r"\d{1,6}", "intermediate": r"\d{1,6}",
    "blocks": r"\d{1,4}", "heads": r"\d{1,4}", "kv_heads": r"\d{1,4}", "seed": r"\d{1,10}",
    "gain_shift": r"\d{1,4}:\d{1,5}:\d{1,6}(?:\.\d{1,8})?", "checkpoint_format": r"gptq|gptq_v2",
}  # fmt: skip
_HUB_PATH = re.compile(r"(?:^|/)models--([A-Za-z0-9._-]+?)--([A-Za-z0-9._-]+)(?:/|$)")
_HUB_ID = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)/([A-Za-z0-9][A-Za-z0-9._-]*)")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
UNNAMED = "a checkpoint without a public name"


def public_name(path: str) -> str:
    """`ORG/NAME`, a command that builds the checkpoint, or UNNAMED; reads config.json if it is still there."""
    found = _HUB_PATH.search(path)
    if found is not None:
        return _published(found[1], found[2]) or UNNAMED
    config = _config(Path(path))
    built = _built(config.get("gptq_diff"))
    if built is not None:
        return built
    for key in ("_name_or_path", "name_or_path"):
        hub = _HUB_ID.fullmatch(str(config.get(key, "")))
        if hub is not None and (name := _published(hub[1], hub[2])):
            return name
    return UNNAMED


def architecture(name: str) -> str:
    """The class's name where it is one of transformers' own."""
    return name if ARCHITECTURES.fullmatch(name) else "(another architecture)"


def fingerprint(value: str) -> str:
    """64 hexadecimal digits, else nothing."""
    return value if _FINGERPRINT.fullmatch(value) else ""


def _published(org: str, name: str) -> str | None:
    return f"{org}/{name}" if org in PUBLISHERS else None


def _config(directory: Path) -> dict[str, Any]:
    try:
        raw = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _built(record: object) -> str | None:
    """The command line of a checkpoint that this tool built, every option of a known form; None for any other."""
    if not isinstance(record, dict) or record.get("build") not in BUILDS or not isinstance(record.get("options"), dict):
        return None
    words = ["gptq-diff model build", str(record["build"])]
    for name, value in record["options"].items():
        if name == "sym" and value is not None:
            words.append("--sym" if value else "--no-sym")
        elif name in ("desc_act", "ambiguous_zeros"):
            words += [f"--{name.replace('_', '-')}"] if value else []
        elif name in _OPTIONS and re.fullmatch(_OPTIONS[name], str(value)):
            words.append(f"--{name.replace('_', '-')} {value}")
        else:
            return None
    return " ".join(words)
