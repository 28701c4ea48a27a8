"""What can be asked for by name, and how `--backends` is read."""

from __future__ import annotations

import pytest

from gptq_diff.errors import UsageError
from gptq_diff.presets import PRESETS, BackendRequest, parse_backends, preset_named

OURS = "hf-fp32, hf-fp16, hf-original, sim-exllama, sim-reconstruct, sim-gptq"
VLLMS = "vllm, vllm-gptq, vllm-exllama, vllm-reconstruct, gptq-marlin, gptq-machete"
HOSTED = "auto-gptq, auto-gptq-torch, auto-gptq-exllama, auto-gptq-exllamav2"
NAMES = f"{OURS}, {VLLMS}, {HOSTED}, gptqmodel, gptqmodel-torch, gptqmodel-exllamav2, gptqmodel-marlin"


def refused(value: str) -> UsageError:
    """The error for that value of `--backends`."""
    with pytest.raises(UsageError) as caught:
        parse_backends(value)
    assert caught.value.exit_code == 2
    return caught.value


def test_the_presets_are_those_of_the_design_that_exist_today() -> None:
    """Names, engines and kernel modes are relied on by workers and by users' scripts."""
    assert [(p.name, p.engine, p.kernel, p.dtype) for p in PRESETS] == [
        ("hf-fp32", "transformers", "exact", "float32"),
        ("hf-fp16", "transformers", "fp16", "float16"),
        ("hf-original", "transformers", "original", "float32"),
        ("sim-exllama", "transformers", "sim-exllama", "float16"),
        ("sim-reconstruct", "transformers", "sim-reconstruct", "float16"),
        ("sim-gptq", "transformers", "sim-gptq", "float16"),
        ("vllm", "vllm", "as-chosen", "float16"),
        ("vllm-gptq", "vllm", "gptq-by-rows", "float16"),
        ("vllm-exllama", "vllm", "exllama-fast", "float16"),
        ("vllm-reconstruct", "vllm", "exllama-reconstruct", "float16"),
        ("gptq-marlin", "vllm", "marlin", "float16"),
        ("gptq-machete", "vllm", "machete", "float16"),
        ("auto-gptq", "auto_gptq", "as-chosen", "float16"),
        ("auto-gptq-torch", "auto_gptq", "torch", "float16"),
        ("auto-gptq-exllama", "auto_gptq", "exllama", "float16"),
        ("auto-gptq-exllamav2", "auto_gptq", "exllamav2", "float16"),
        ("gptqmodel", "gptqmodel", "as-chosen", "float16"),
        ("gptqmodel-torch", "gptqmodel", "torch", "float16"),
        ("gptqmodel-exllamav2", "gptqmodel", "exllamav2", "float16"),
        ("gptqmodel-marlin", "gptqmodel", "marlin", "float16"),
    ]


def test_what_is_held_against_each_other_keeps_its_skeleton_in_float32() -> None:
    """Every backend runs norms, attention and residual in float16, but the reference and the unquantised model."""
    assert [p.name for p in PRESETS if p.dtype == "float32"] == ["hf-fp32", "hf-original"]


def test_every_preset_has_a_one_line_summary() -> None:
    """`gptq-diff backends` shows it in a table."""
    for preset in PRESETS:
        assert preset.summary
        assert "\n" not in preset.summary


def test_backends_are_kept_in_the_order_given() -> None:
    """report.json's results follow it."""
    assert [r.preset.name for r in parse_backends("sim-gptq,hf-fp32,hf-fp16")] == ["sim-gptq", "hf-fp32", "hf-fp16"]


@pytest.mark.parametrize(
    ("value", "python"),
    [
        ("hf-fp16", None),
        ("hf-fp16@/opt/env/bin/python", "/opt/env/bin/python"),
        ("hf-fp16@my-env", "my-env"),
        (" hf-fp16 @ my-env ", "my-env"),
        ("hf-fp16@/srv/me@host/python", "/srv/me@host/python"),
    ],
)
def test_an_interpreter_follows_the_first_at_sign(value: str, python: str | None) -> None:
    """A path may hold an @ of its own."""
    assert parse_backends(value) == (BackendRequest(preset_named("hf-fp16"), python),)


def test_an_unknown_backend_is_told_the_nearest_and_the_list() -> None:
    """A typing error is mended without opening the manual."""
    error = refused("hf-fp32,sim-exlama")
    assert str(error) == "there is no backend named 'sim-exlama'; did you mean 'sim-exllama'?"
    assert error.hint == f"Backends: {NAMES}."


def test_a_name_close_to_nothing_gets_the_list_alone() -> None:
    """A wild guess is worse than none."""
    error = refused("zzzzzzzz")
    assert str(error) == "there is no backend named 'zzzzzzzz'"
    assert error.hint == f"Backends: {NAMES}."


@pytest.mark.parametrize("name", ["HF-FP32", "Sim-Gptq"])
def test_case_matters_but_the_right_one_is_offered(name: str) -> None:
    """Names go into paths and reports, so there is one spelling."""
    assert str(refused(name)).endswith(f"did you mean {name.lower()!r}?")


@pytest.mark.parametrize("value", ["hf-fp16,hf-fp16", "hf-fp16,hf-fp16@other", "hf-fp16, hf-fp16"])
def test_a_backend_twice_is_refused(value: str) -> None:
    """Two results of one name could not be told apart, even under different interpreters."""
    error = refused(value)
    assert str(error) == "--backends names hf-fp16 twice"
    assert error.hint == "Name each backend once."


@pytest.mark.parametrize("value", ["", " ", ",", "hf-fp16,", ",hf-fp16", "hf-fp16,,sim-gptq", "@python"])
def test_an_empty_entry_is_refused(value: str) -> None:
    """Most often a comma too many, or an empty shell variable."""
    error = refused(value)
    assert str(error) == f"--backends {value!r} has an empty entry"
    assert error.hint == "Separate names with single commas: hf-fp16,sim-gptq."


@pytest.mark.parametrize("value", ["sim-gptq@", "sim-gptq@ "])
def test_an_at_sign_without_an_interpreter_is_refused(value: str) -> None:
    """It may not quietly mean our own interpreter."""
    error = refused(value)
    assert str(error) == "--backends names no interpreter after sim-gptq@"
    assert error.hint == "Write sim-gptq@PYTHON, or sim-gptq alone for gptq-diff's own interpreter."


def test_the_paths_of_one_kernel_have_one_route_and_marlin_and_machete_their_own() -> None:
    """Presets of one route share a load of the engine, which takes most of a minute."""
    routes = {p.name: p.route for p in PRESETS if p.engine == "vllm"}
    assert routes["vllm-gptq"] == routes["vllm-exllama"] == routes["vllm-reconstruct"]
    assert len(set(routes.values())) == 4
