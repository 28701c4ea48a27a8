"""What may stay of a sentence that is shared."""

from __future__ import annotations

import pytest

from gptq_diff.releases import Release
from gptq_diff.report.redacted_facts import environment, gpu, version, versions
from gptq_diff.report.redacted_reasons import WITHHELD, backend_reason, layer_reason
from gptq_diff.report.redacted_words import MASK, Words, known, layer_name, vocabulary

WORDS = Words({"my-secret-plan": "p1", "7": "p2", "short": "p3"})

OURS = (
    "2 infinite or NaN outputs where the exact answer is at most 21,835",
    "row 0, column 260: channel 1229 holds an activation of 11,600, and times its code of 7 it is 81,200",
    "model.layers.11.mlp.down_proj is the first layer to break on sim-exllama: 1.2e-03 where rounding explains 4e-4",
    "run here by exllama-reconstruct, exllama-fast (decode): all linears agree, the reference's tokens",
    "vLLM 0.20.2", "51 rows: agrees", "4-bit", "inf/NaN", "x 1.371", "model.layers.3.mlp.down_proj@1 -> -0.3 bits",
    "Marlin takes symmetric 4 and 8 bit, not 3 bit, sym False", "TorchLinear", "1 of 37 rows lost",
)  # fmt: skip
NOT_OURS = (
    "/home/mariella/models", "mariella", "hf_QwErTyUiOpAsDfGhJk", "mariella@example.org", "https://u:p@evil.example/x",
    "10.20.30.40", "gpu-box-17.corp.internal", "sk-proj-abc", "C:\\Users\\mariella", "~/models", "AKIAIOSFODNN7EXAMPLE",
    "+4917012345678", "model.layers.0.mariella_proj", "0xdeadbeefcafe", "ghp_16C7e42F292c69", "fe80::1ff:fe23",
    "/root/models", "../models", "mariella.safetensors", "1234567", "Mariella's", "PASSWORD=x9y8z7",
)  # fmt: skip


@pytest.mark.parametrize("sentence", OURS)
def test_our_own_sentences_stay(sentence: str) -> None:
    assert WORDS.kept(sentence) == sentence
    assert WORDS.whole(sentence) == sentence


@pytest.mark.parametrize("secret", NOT_OURS)
def test_anything_else_goes(secret: str) -> None:
    """Alone, within a sentence, in brackets, and with punctuation."""
    for sentence in (secret, f"the file {secret} is missing", f"({secret}),", f"at {secret}: no", f"'{secret}'"):
        said = WORDS.kept(sentence)
        assert secret not in said
        assert MASK in said
        assert WORDS.whole(sentence) is None


def test_what_is_quoted_goes_even_if_every_word_is_ours() -> None:
    """That is where messages quote what a model wrote; a possessive is no quotation."""
    assert WORDS.kept("with the answer 'the exact answer is', and \"rows\" of `layers`") == (
        f"with the answer {MASK} , and {MASK} of {MASK}"
    )
    assert WORDS.kept("the reference's tokens and vLLM's rows") == "the reference's tokens and vLLM's rows"


def test_prompts_get_their_new_names() -> None:
    """After the word prompt whatever they are called, elsewhere where they are no word or number of ours."""
    assert WORDS.kept("on sim-gptq (prompt 7): my-secret-plan, 7 rows") == "on sim-gptq (prompt p2): p1, 7 rows"
    assert WORDS.kept("(prompt short): a short sum") == "(prompt p3): a short sum"


def test_neighbouring_unknown_words_are_one_mask() -> None:
    assert WORDS.kept("cannot open Mariella Fernandez Ortiz file") == f"cannot open {MASK} file"


@pytest.mark.parametrize("address", ["10.83.147.22", "127.0.0.1", "192.168.0.12"])
def test_an_address_is_no_name_and_no_release(address: str) -> None:
    """All of it is numbers with dots between them, as parts of names and releases are."""
    assert layer_name(address).count(MASK) == 4
    assert version(address) is None
    assert versions({"torch": address}) == {}
    assert address not in Words({}).kept(f"connected to {address}, {address}:8000 and torch {address}")


def test_layer_names() -> None:
    assert layer_name("model.layers.11.mlp.down_proj@all-reduce") == "model.layers.11.mlp.down_proj@all-reduce"
    assert layer_name("model.mariella.0.q_proj") == f"model.{MASK}.0.q_proj"
    assert layer_name("*") == "*"


def test_the_vocabulary_is_this_package_and_not_its_tests() -> None:
    assert {"exllama-fast", "split-k-noise", "overflow"} <= vocabulary()
    assert "mariella" not in vocabulary()
    assert not known("")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("timed out after 600 s while loading /home/mariella/m", "timed out after 600 s"),
        ("its worker was killed by SIGKILL (out of memory?)", "its worker was killed by SIGKILL (out of memory?)"),
        ("its worker ended with status 1: ValueError: https://u:p@h/x", "its worker ended with status 1 (ValueError)"),
        ("its worker ended with status 1: MariellaError: x", "its worker ended with status 1"),
        ("mariella says no", WITHHELD),
        ("the run was interrupted when 1 of its 4 captures were whole",) * 2,
    ],
)
def test_reasons_keep_their_form_alone(given: str, kept: str) -> None:
    assert backend_reason(given) == kept


def test_a_linears_reason_is_whole_or_not_there() -> None:
    assert layer_reason("its input was already NaN or infinite", WORDS) == "its input was already NaN or infinite"
    assert layer_reason("see mariella", WORDS) == WITHHELD


def test_versions_keep_known_local_parts() -> None:
    assert [version(v) for v in ("2.13.0+cpu", "2.11.0+cu130", "0.20.2.dev12+gabc", "1.0+mariella.internal", "x")] == [
        "2.13.0+cpu", "2.11.0+cu130", "0.20.2.dev12", "1.0", None,
    ]  # fmt: skip
    assert versions({"torch": "2.13.0", "mariella-pkg": "1.0", "numpy": "mariella"}) == {"torch": "2.13.0"}


@pytest.mark.parametrize(
    "name",
    ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090", "Tesla T4", "NVIDIA L40S",
     "NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX A6000", "NVIDIA H200", "NVIDIA A100-PCIE-40GB", "NVIDIA B200"],
)  # fmt: skip
def test_gpus_keep_their_names(name: str) -> None:
    assert gpu(name) == name


@pytest.mark.parametrize(
    "name",
    ["Intel(R) Xeon(R) Processor", "AMD EPYC 7763 64-Core Processor", "Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz",
     "AMD Ryzen 9 7950X 16-Core Processor", "Intel(R) Core(TM) i7-10700K CPU @ 3.80GHz",
     "Intel(R) Xeon(R) Platinum 8480C", "Apple M2 Max"],
)  # fmt: skip
def test_processors_keep_their_names(name: str) -> None:
    got = environment({"cpu": name})["cpu"]
    assert got is not None
    assert set(name.split()) - set(got.split()) <= {"9"}


def test_an_environment_is_named_facts_of_known_forms() -> None:
    given = {
        "python": "3.11.7", "platform": "Linux x86_64", "cuda": "driver 570.86.15", "gpu": "NVIDIA H100 of mariella",
        "cpu": "Intel host mariella-box", "HF_TOKEN": "hf_x", "host": "mariella-box", "torch": "2.13.0+mariella",
        "numpy": None,
    }  # fmt: skip
    assert environment(given) == {
        "python": "3.11.7", "platform": "Linux x86_64", "cuda": "driver 570.86.15", "gpu": "NVIDIA H100",
        "cpu": "Intel", "torch": "2.13.0", "numpy": None,
    }  # fmt: skip
    assert environment({"platform": "Linux mariella", "cuda": "mariella"}) == {"platform": None, "cuda": None}


@pytest.mark.parametrize(
    "release", [Release("vllm", "0.6.4.post1"), Release("vllm", "0.33.0"), Release("gptqmodel", "7.7.0")], ids=str
)
def test_kernels_of_releases_keep_their_names(release: Release) -> None:
    """A report that does not say which release it is about is of no use to those who made it."""
    for name in release.backends:
        assert known(name)
        said = f"the kernel {name} overflows with 37 rows, {name}: agrees"
        assert Words({}).kept(said) == said


@pytest.mark.parametrize(
    "name", ["vllm==0.20.2+secret:gptq", "vllm==0.20.2:secret", "secret==0.20.2:gptq", "vllm==0.20.2", "vllm==٠.1:gptq"]
)
def test_what_only_looks_like_one_is_masked(name: str) -> None:
    """A local version says where somebody works."""
    assert not known(name)
