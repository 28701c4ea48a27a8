"""From what the user typed to a checked `Asked`: every input error is found here, before anything runs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint, resolve_model
from gptq_diff.environments.find import (
    PROJECT_FOLDER,
    environment_at,
    environments_in,
    is_name,
    python_of,
    user_folder,
)
from gptq_diff.errors import UsageError
from gptq_diff.hosts import default_requests, look_around
from gptq_diff.presets import BackendRequest, parse_backends, preset_named
from gptq_diff.prompts import PromptEntry, read_prompt_file, tokenise
from gptq_diff.records import Prompt
from gptq_diff.releases import backend_of_release
from gptq_diff.session.asked import CACHING, Asked, Backend
from gptq_diff.session.original import check_original, check_reference, with_original
from gptq_diff.session.same_shape import check_same_shape
from gptq_diff.session.sweep import Lengths, swept
from gptq_diff.suggest import nearest
from gptq_diff.upstream.store import user_store

MANY_WEIGHTS = 10_000_000_000
"""Quantised weights from which on --simulate auto means targeted."""


@dataclass(frozen=True)
class PromptSource:
    """Where prompts come from and how they are worded: --prompt-file, --system, --no-chat-template.

    entries: what the file holds, where it has been read already.
    """

    file: str
    system: str | None
    chat_template: bool
    entries: tuple[PromptEntry, ...] | None = None


def prepare_model(model: str, *, download: bool) -> Path:
    """The directory of --model."""
    return resolve_model(model, download).absolute()


def prepare_prompts(source: PromptSource, stdin: BinaryIO, checkpoint: Checkpoint) -> tuple[Prompt, ...]:
    """The prompts of --prompt-file as token ids of this checkpoint."""
    entries = source.entries if source.entries is not None else read_prompt_file(source.file, stdin)
    return tokenise(
        entries, checkpoint.path, system=source.system, chat_template=source.chat_template,
        trust_remote_code=checkpoint.trust_remote_code, vocab_size=_number(checkpoint.config, "vocab_size") or 2**31,
        context_length=_number(checkpoint.config, "max_position_embeddings"),
    )  # fmt: skip


def _number(config: Mapping[str, object], key: str) -> int | None:
    """A whole number of config.json, or of its text_config (multimodal wrappers)."""
    value = config.get(key)
    inner = config.get("text_config")
    if value is None and isinstance(inner, Mapping):
        value = inner.get(key)
    return value if isinstance(value, int) else None


def prepare_backends(names: str | None, reference: str, original: Path | None = None) -> tuple[Backend, ...]:
    """The backends of --backends, the reference put first where the list leaves it out, --original's model last."""
    check_reference(reference)
    requests = parse_backends(names) if names is not None else default_requests()
    requests = with_original(requests, original, named=names is not None)
    if reference not in {r.preset.name for r in requests}:
        requests = (BackendRequest(preset_named(reference)), *requests)
    return tuple(prepare_backend(r) for r in requests)


def prepare_backend(request: BackendRequest) -> Backend:
    """The preset with the interpreter that runs it; UsageError where none here can."""
    preset = request.preset
    if request.python is not None:
        python = interpreter(request.python)
    else:
        host = look_around().host_of(preset)
        if host.python is None:
            reason = host.support.reason
            raise UsageError(f"the backend {preset.name} cannot run here: {reason}", "see `gptq-diff backends`")
        python = host.python
    released = backend_of_release(preset.name)
    route = preset.route if released is None else str(user_store().builds(released[0]))
    return Backend(preset.name, preset.engine, preset.kernel, preset.dtype, str(python), route)


def interpreter(named: str) -> Path:
    """The Python that stands after `@`: an environment's, by name or directory, or one by its path or its name on PATH.

    A bare name is first that of an environment in the user's own folder; then a file or directory here; then one of
    `.envs` here, which is looked into only because the user named it; then a command on PATH.
    """
    path = Path(named).expanduser()
    for place in (user_folder() / named, path, Path(PROJECT_FOLDER, named)) if is_name(named) else (path,):
        ours = environment_at(place)
        for python in (python_of(place), place) if ours is None else (ours.python,):
            if python.is_file():
                return python.absolute()
    found = shutil.which(named)
    if found is None:
        known = [one.name for folder in (user_folder(), Path(PROJECT_FOLDER)) for one in environments_in(folder)]
        raise UsageError(
            f"there is no Python interpreter {named!r}{nearest(named, known)}",
            "give the path of one, or of its environment; gptq-diff env list shows those that were made",
        )
    return Path(found).absolute()


def _check_numbers(settings: Mapping[str, object]) -> None:
    """What the options' own limits let through."""
    timeout, seed = settings.get("timeout"), settings.get("seed")
    if isinstance(timeout, float) and math.isnan(timeout):
        raise UsageError("--timeout is not a number of seconds", "leave it out, or give a number such as 600")
    if isinstance(seed, int) and seed >= 2**63:
        raise UsageError(f"--seed {seed} is too large", "give a number below 2^63")


def _simulate(mode: str, checkpoint: Checkpoint) -> str:
    """--simulate, with "auto" settled by the size of the model."""
    weights = sum(spec.in_features * spec.out_features for spec in checkpoint.layers)
    return ("targeted" if weights > MANY_WEIGHTS else "all") if mode == "auto" else mode


def _check_device(device: object, ranks: object) -> None:
    """What can be told of --device before any worker's torch is asked."""
    if not isinstance(device, str) or not device.startswith("cuda"):
        return
    if not look_around().gpu:
        raise UsageError(f"--device {device}: there is no NVIDIA GPU here", "leave it out, or write cpu")
    if ":" in device and isinstance(ranks, int) and ranks > 1:
        raise UsageError(f"--device {device} is one GPU, and --tensor-parallel-size asks for {ranks}", "leave one out")


def _check_prefix_cache(backends: tuple[Backend, ...], sweep: Lengths | None) -> None:
    if not any(b.engine in CACHING for b in backends):
        raise UsageError(
            "--prefix-cache is about vLLM's presets, and none of them runs here",
            "name one by --backends, or leave it out; see `gptq-diff backends`",
        )
    if sweep is not None:
        raise UsageError(
            "--prefix-cache and --sweep-tokens: a length of a sweep begins as the one before it, and would come out of "
            "the cache", "leave one of the two out",
        )  # fmt: skip


def prepare(
    model: Path, reference_model: Path | None, source: PromptSource, stdin: BinaryIO, backends: str | None,
    reference: str, *, trust_remote_code: bool, original: Path | None = None, sweep: Lengths | None = None,
    **settings: object,
) -> Asked:  # fmt: skip
    """Check everything and put it together; settings are further fields of Asked."""
    _check_numbers(settings)
    _check_device(settings.get("device"), settings.get("tensor_parallel"))
    chosen = prepare_backends(backends, reference, original)
    if settings.get("prefix_cache"):
        _check_prefix_cache(chosen, sweep)
    with open_checkpoint(model, trust_remote_code=trust_remote_code) as checkpoint:
        if checkpoint.needs_remote_code and not trust_remote_code:
            raise UsageError(
                f"the model {model} brings code of its own (auto_map in config.json)",
                "read it, then --trust-remote-code",
            )
        if not checkpoint.layers:
            raise UsageError(
                f"the model {model} has no quantised linear that can be read", "see `gptq-diff model inspect`"
            )
        if reference_model is not None:
            with open_checkpoint(reference_model, trust_remote_code=trust_remote_code) as reference_checkpoint:
                check_same_shape(checkpoint, reference_checkpoint)
        if original is not None:
            check_original(checkpoint, original)
        settings["simulate"] = _simulate(str(settings.get("simulate", "all")), checkpoint)
        prompts = prepare_prompts(source, stdin, checkpoint)
        if sweep is not None:
            prompts = swept(prompts, sweep, _number(checkpoint.config, "max_position_embeddings"))
    return Asked(
        model=model, reference_model=reference_model or model, prompts=prompts, backends=chosen, reference=reference,
        trust_remote_code=trust_remote_code, original=original, sweep=sweep, **settings,  # type: ignore[arg-type]
    )  # fmt: skip
