"""Of what compilers say, the one line that matters."""

from __future__ import annotations

import pytest

from gptq_diff.upstream.first_error import first_error

NVCC = """[1/3] /usr/local/cuda/bin/nvcc -MD -c /src/csrc/q_gemm.cu -o q_gemm.cuda.o
FAILED: q_gemm.cuda.o
/src/packs/vllm==0.5.1/csrc/quantization/gptq/q_gemm.cu(41): warning #177-D: variable "x" was declared but never used
/src/packs/vllm==0.5.1/csrc/quantization/gptq/q_gemm.cu(52): error: identifier "nothing" is undefined
/src/packs/vllm==0.5.1/csrc/quantization/gptq/q_gemm.cu(53): error: expected a ";"
2 errors detected in the compilation of "/src/q_gemm.cu".
ninja: build stopped: subcommand failed.
"""


@pytest.mark.parametrize(
    ("said", "first"),
    [
        (NVCC, 'q_gemm.cu(52): error: identifier "nothing" is undefined'),
        (
            "c++ -c b.cpp\n/a/b/gptq_gemm.cpp:5:10: fatal error: torch/library.h: No such file or directory\n",
            "gptq_gemm.cpp:5:10: fatal error: torch/library.h: No such file or directory",
        ),
        ("nvcc fatal   : Unsupported gpu 'compute_50'\n", "nvcc fatal : Unsupported gpu 'compute_50'"),
        ("/usr/bin/ld: cannot find -lcudart: No such file\n", "ld: cannot find -lcudart: No such file"),
        ("OSError: /x/k.so: undefined symbol: _Z9gptq_gemm\n", "OSError: k.so: undefined symbol: _Z9gptq_gemm"),
        ("[1/3] compiling\n[2/3] with 0 errors\nall is well\n", ""),
        ("", ""),
    ],
    ids=["nvcc", "gcc", "nvcc's options", "linker", "loader", "none", "nothing"],
)  # fmt: skip
def test_the_first_error_is_found(said: str, first: str) -> None:
    """Warnings and commands are none; folders of this machine are left out."""
    assert first_error(said) == first


def test_it_is_fit_for_a_terminal() -> None:
    """Compilers colour their output, and quote lines of any length."""
    said = first_error("a.cu(1): \x1b[31merror\x1b[0m: " + "x" * 1000)
    assert "\x1b" not in said
    assert len(said) == 300
