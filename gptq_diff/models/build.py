"""Build a model by name, once: the result is kept in the user's cache directory and found there the next time."""

from __future__ import annotations

import difflib
import hashlib
import json
import shutil
from pathlib import Path

from gptq_diff.errors import UsageError
from gptq_diff.models.base import Progress, Recipe
from gptq_diff.models.config_files import BUILD_KEY, add_build_record
from gptq_diff.models.options import BuildOptions
from gptq_diff.models.place import appearing, cache_root, locked
from gptq_diff.models.random_models import SYNTHETIC_QWEN25_32B, TINY_QWEN2
from gptq_diff.models.smollm2 import SmolLM2
from gptq_diff.models.tensor_file import tensors_complete

RECIPES: tuple[Recipe, ...] = (SmolLM2(), TINY_QWEN2, SYNTHETIC_QWEN25_32B)


def build_model(
    name: str,
    options: BuildOptions = BuildOptions(),  # noqa: B008  frozen
    out: Path | None = None,
    progress: Progress = lambda line: None,  # noqa: ARG005
) -> Path:
    """The directory of the model `name` built with these options, in the cache or at `out`.

    A directory that holds the very same build is reused. UsageError for an unknown name, for options the model cannot
    take, and for an `out` that holds something else.
    """
    recipe = recipe_named(name)
    resolved = recipe.resolve(options)
    record: dict[str, object] = {"build": recipe.name, "recipe": recipe.version, "options": resolved.given()}
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:10]
    directory = out.absolute() if out is not None else cache_root() / "models" / f"{name}-{digest}"
    with locked(directory, progress):
        if _holds(directory, record):
            progress(f"{name} is there already: {directory}")
            return directory
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            if out is not None:
                raise UsageError(f"{directory} exists and is not this build of {name}", hint="give another --out")
            shutil.rmtree(directory)  # in the cache: damaged, or cut short by a full disk
        with appearing(directory) as partial:
            recipe.write(partial, resolved, cache_root() / "downloads", progress)
            add_build_record(partial, record)
    return directory


def recipe_named(name: str) -> Recipe:
    """The recipe of that name; UsageError with the nearest name for any other."""
    known = {recipe.name: recipe for recipe in RECIPES}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(known)}"
    raise UsageError(f"there is no model called {name!r} to build", hint=hint)


def _holds(directory: Path, record: dict[str, object]) -> bool:
    """Whether the directory is a complete build with this record."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get(BUILD_KEY) == record and tensors_complete(directory)
