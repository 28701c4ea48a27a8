"""Kernels of a release by name."""

from __future__ import annotations

import pytest

from gptq_diff.errors import UsageError
from gptq_diff.kernels.vllm_gemm.paths import FAST, RECONSTRUCT
from gptq_diff.numerics.floors import MODELS
from gptq_diff.presets import PRESETS, parse_backends, preset_named
from gptq_diff.releases import MODES, Release, backend_of_release, preset_of_release, release_named


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("vllm==0.20.2", Release("vllm", "0.20.2")),
        ("vllm==0.6.4.post1", Release("vllm", "0.6.4.post1")),
        (" GPTQModel == 7.7.0", Release("gptqmodel", "7.7.0")),
    ],
)
def test_releases_are_read(text: str, release: Release) -> None:
    """As pip writes them; the package in whatever case."""
    assert release_named(text) == release


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vllm", "names no release"),
        ("vlm==1.0", "no kernels are known of the package 'vlm'; did you mean 'vllm'?"),
        ("vllm==latest", "'latest' is not a version of vllm"),
        ("vllm==", "'' is not a version"),
        ("vllm==../../etc", "is not a version"),
        ("vllm==0.20.2\n", None),
        ("vllm==0.20.2 ; rm", "is not a version"),
    ],
)
def test_what_is_no_release_is_refused(text: str, said: str | None) -> None:
    """Names become folders, so nothing but a version gets through."""
    if said is None:
        assert release_named(text).version == "0.20.2"
        return
    with pytest.raises(UsageError) as caught:
        release_named(text)
    assert said in str(caught.value)


def test_every_mode_has_an_error_model() -> None:
    """The paths that it forces or may take are ones that the judge knows."""
    for modes in MODES.values():
        assert {path for path in modes.values() if path is not None} <= MODELS.keys()
    assert MODES["vllm"] == {"exllama": FAST, "reconstruct": RECONSTRUCT, "gptq": None}


def test_backends_of_releases_are_presets() -> None:
    """By --backends too, with an interpreter, and under the name that the report will have."""
    for name in (*Release("vllm", "0.20.2").backends, *Release("gptqmodel", "7.7.0").backends):
        preset = preset_named(name)
        assert (preset.name, preset.kernel, preset.engine, preset.gpu) == (name, name, "transformers", True)
        (request,) = parse_backends(f"{name}@/some/python")
        assert (request.preset, request.python) == (preset, "/some/python")
    assert preset_named("VLLM==0.20.2:gptq").name == "vllm==0.20.2:gptq"


def test_ordinary_presets_are_not_mistaken_for_releases() -> None:
    """None of the fixed names is read as one."""
    assert [preset_of_release(preset.name) for preset in PRESETS] == [None] * len(PRESETS)
    assert backend_of_release("") is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vllm==0.20.2", "Kernels: vllm==0.20.2:exllama, vllm==0.20.2:reconstruct, vllm==0.20.2:gptq."),
        ("vllm==0.20.2:exlama", "did you mean 'exllama'?"),
        ("gptqmodel==7.7.0:gptq", "Kernels: gptqmodel==7.7.0:exllama_v2."),
        ("torch==2.0:gptq", "no kernels are known of the package 'torch'"),
    ],
)
def test_a_kernel_that_is_not_known_is_refused(name: str, said: str) -> None:
    """With those that there are."""
    with pytest.raises(UsageError) as caught:
        preset_named(name)
    assert said in f"{caught.value} {caught.value.hint}"
