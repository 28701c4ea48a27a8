"""What config.json says of everything between the linears, for the architectures whose arithmetic is known here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ARCHITECTURES = frozenset({"llama", "qwen2", "mistral"})
"""config.json's model_type of what is understood: RMSNorm, rotary attention with shared kv heads, gated MLP, SwiGLU."""
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
}
ATTENTION = ("q_proj", "k_proj", "v_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Llama3:
    """The frequency scaling that config.json calls llama3 (Llama 3.1's own)."""

    factor: float
    low: float
    high: float
    context: float


@dataclass(frozen=True)
class Shape:
    """The numbers of one model.

    eps: of every RMSNorm. theta: the rotary base. slow: what all rotary frequencies are divided by.
    window: tokens that attention looks back, None for all. biased: leaf names of the linears that have a bias.
    """

    blocks: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float
    slow: float
    llama3: Llama3 | None
    activation: str
    window: int | None
    biased: frozenset[str]
    tied: bool

    @property
    def scale(self) -> float:
        """What q k is multiplied by before the softmax."""
        return float(self.head_dim**-0.5)


def shape_of(config: Mapping[str, object]) -> Shape | str:
    """The shape, or why this model's intervals are not judged."""
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        return f"what happens between the linears of a {kind} is not known here"
    activation = ACTIVATIONS.get(str(config.get("hidden_act", "silu")))
    if activation is None:
        return f"the activation {config.get('hidden_act')} is not known here"
    if kind == "qwen2" and config.get("use_sliding_window"):
        return "Qwen2 with a sliding window in some of its blocks is not known here"
    rope = _rope(config)
    if isinstance(rope, str):
        return rope
    try:
        heads, hidden = _int(config, "num_attention_heads"), _int(config, "hidden_size")
        return Shape(
            blocks=_int(config, "num_hidden_layers"), hidden=hidden, heads=heads,
            kv_heads=_int(config, "num_key_value_heads", heads), head_dim=_int(config, "head_dim", hidden // heads),
            eps=_float(config, "rms_norm_eps", 1e-6), theta=rope[0], slow=rope[1], llama3=rope[2],
            activation=activation, window=_window(config, kind), biased=_biased(config, kind),
            tied=bool(config.get("tie_word_embeddings", False)),
        )  # fmt: skip
    except (TypeError, ValueError) as e:
        return f"config.json does not say what the model looks like: {e}"


def _int(config: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int):
        raise TypeError(f"{key} is {value!r}")
    return value


def _float(config: Mapping[str, object], key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, (int, float)):
        raise TypeError(f"{key} is {value!r}")
    return float(value)


def _rope(config: Mapping[str, object]) -> tuple[float, float, Llama3 | None] | str:
    """(base, divisor of all frequencies, llama3's scaling), from either spelling that transformers has had."""
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    settings = new if isinstance(new, Mapping) else old if isinstance(old, Mapping) else {}
    theta = settings.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = settings.get("rope_type", settings.get("type", "default"))
    partial = settings.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if not isinstance(theta, (int, float)) or partial != 1.0:
        return f"rotary embedding with the base {theta!r} on a part {partial!r} of each head is not known here"
    numbers = {k: float(v) for k, v in settings.items() if isinstance(v, (int, float))}
    if kind == "default":
        return float(theta), 1.0, None
    if kind == "linear" and "factor" in numbers:
        return float(theta), numbers["factor"], None
    asked = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if kind == "llama3" and all(key in numbers for key in asked):
        return float(theta), 1.0, Llama3(*(numbers[key] for key in asked))
    return f"rotary scaling of the type {kind!r} is not known here"


def _window(config: Mapping[str, object], kind: str) -> int | None:
    """How far attention looks back; the other architectures have the number written and do not use it."""
    window = config.get("sliding_window")
    return window if kind == "mistral" and isinstance(window, int) else None


def _biased(config: Mapping[str, object], kind: str) -> frozenset[str]:
    if kind == "qwen2":
        return frozenset(ATTENTION)
    found: set[str] = set()
    if kind == "llama" and config.get("attention_bias"):
        found |= {*ATTENTION, "o_proj"}
    if kind == "llama" and config.get("mlp_bias"):
        found |= set(MLP)
    return frozenset(found)
