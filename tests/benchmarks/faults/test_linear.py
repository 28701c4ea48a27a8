"""The planter's own reading of packed tensors: it must be right without sharing code with gptq_diff's."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from gptq_diff import faults
from gptq_diff.faults.linear import packed, unpacked
from tests.benchmarks.faults.conftest import VARIANTS, weight_of


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weight_is_the_one_that_gptq_diff_reads(stored, variant):
    """Two implementations of the format that share nothing agree on every linear."""
    model = stored[variant]
    for name in model.linears:
        np.testing.assert_array_equal(model.linear(name).weight(), weight_of(model.path, name))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_come_back_from_words(bits):
    """Packing and unpacking are each other's inverse, 3 bit codes across words included."""
    codes = np.random.default_rng(bits).integers(0, 2**bits, (5, 64))
    np.testing.assert_array_equal(unpacked(packed(codes, bits), bits), codes)


def test_linears_come_in_the_order_of_execution(stored):
    """The first bad layer is defined by that order."""
    leaves = [name.rpartition(".")[2] for name in stored["4bit"].linears[:7]]
    assert leaves == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_planting_imports_nothing_of_gptq_diff():
    """What plants and what judges must not be wrong in the same way."""
    for file in Path(faults.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            ours = [name for name in names if name.startswith("gptq_diff")]
            assert all(name == "gptq_diff.faults" or name.startswith("gptq_diff.faults.") for name in ours), file
