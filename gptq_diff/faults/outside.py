"""Faults that no quantised linear has: norms, rotary positions, attention, activation, residual."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gptq_diff.faults import pick
from gptq_diff.faults.fault import Between, Fault, Patch, Site

KIND = "outside-linears"
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")


def plant(site: Site) -> Fault:
    """A norm's weight in the checkpoint, or one of the engine's own steps; off by 1e-3 (mild) to a half (gross)."""
    by = float(10.0 ** (-3 + 2.7 * site.size))
    block = int(site.layer.split(".")[2])
    if site.way == "bytes":
        return norm(site, block, by)
    way = str(site.rng.choice(["scaling", "rotary", "activation", "mlp residual", "attention residual"]))
    root = f"model.layers.{block}"
    last_block = f"model.layers.{block + 1}" not in {".".join(name.split(".")[:3]) for name in site.model.linears}
    after_mlp = "" if last_block else f"model.layers.{block + 1}.self_attn.q_proj"
    attention = Between(f"{root}.self_attn.v_proj", f"{root}.self_attn.o_proj", "attention")
    places: dict[str, tuple[Patch, Between]] = {
        "scaling": (attribute(f"{root}.self_attn", "scaling", lambda old: old * (1 + by)), attention),
        "rotary": (turned(f"{root}.self_attn", by), attention),
        "activation": (
            called_after(f"{root}.mlp.act_fn", lambda y: y * (1 + by)),
            Between(f"{root}.mlp.up_proj", f"{root}.mlp.down_proj", "activation"),
        ),
        "mlp residual": (
            called_after(f"{root}.mlp", lambda y: y * (1 + by)),
            Between(f"{root}.mlp.down_proj", after_mlp, "residual"),
        ),
        "attention residual": (
            called_after(f"{root}.self_attn", lambda y: (y[0] * (1 + by), *y[1:])),
            Between(f"{root}.self_attn.o_proj", f"{root}.mlp.gate_proj", "residual"),
        ),
    }
    patch, between = places[way]
    said = "turned too far" if way == "rotary" else "too large"
    return Fault(KIND, f"{way} of block {block} {said} by {by:.2g}", (), patch=patch, between=between, at="between")


def norm(site: Site, block: int, by: float) -> Fault:
    """Some channels of a norm's weight too large."""
    name, between = norm_place(site, block)
    weight = site.model.tensor(name).astype(np.float64)
    chosen = pick.mask(site.rng, len(weight), pick.count(len(weight), float(site.rng.random())))
    wrong = np.where(chosen, weight * (1 + by), weight).astype(np.float16)
    what = f"{name} too large by {by:.2g}, {pick.words(chosen, 'channels')}"
    return Fault(KIND, what, (), changed={name: wrong}, between=between, at="between")


def norm_place(site: Site, block: int) -> tuple[str, Between]:
    """A norm of that block, or the last one, and the linears round it."""
    root, which = f"model.layers.{block}", str(site.rng.choice(NORMS))
    names = site.model.linears
    if which == "norm":
        return "model.norm.weight", Between(names[-1], "", "norm")
    if which == "input_layernorm":
        before = f"model.layers.{block - 1}.mlp.down_proj" if block else ""
        return f"{root}.input_layernorm.weight", Between(before, f"{root}.self_attn.q_proj", "norm")
    return f"{root}.{which}.weight", Between(f"{root}.self_attn.o_proj", f"{root}.mlp.gate_proj", "norm")


def attribute(module: str, name: str, change: Callable[[Any], Any]) -> Patch:
    """That attribute of that module changed."""

    @contextlib.contextmanager
    def patch(model: Any) -> Iterator[None]:
        owner = model.get_submodule(module)
        before = getattr(owner, name)
        setattr(owner, name, change(before))
        try:
            yield
        finally:
            setattr(owner, name, before)

    return patch


def called_after(module: str, change: Callable[[Any], Any]) -> Patch:
    """That module's output changed."""

    @contextlib.contextmanager
    def patch(model: Any) -> Iterator[None]:
        handle = model.get_submodule(module).register_forward_hook(lambda *call: change(call[2]))
        try:
            yield
        finally:
            handle.remove()

    return patch


def turned(module: str, by: float) -> Patch:
    """The rotary embedding of that attention module turned further: `by` radians more at each position."""

    def change(pair: tuple[Any, Any]) -> tuple[Any, Any]:
        cos, sin = pair
        positions = np.arange(cos.shape[-2], dtype=np.float32)
        angle = cos.new_tensor((by * positions).tolist()).reshape(-1, 1)
        c, s = angle.cos(), angle.sin()
        return cos * c - sin * s, sin * c + cos * s

    @contextlib.contextmanager
    def patch(model: Any) -> Iterator[None]:
        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, {**kwargs, "position_embeddings": change(kwargs["position_embeddings"])}

        handle = model.get_submodule(module).register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    return patch
