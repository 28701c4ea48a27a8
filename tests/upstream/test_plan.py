"""How a kernel is compiled is read off its sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptq_diff.errors import GptqDiffError
from gptq_diff.releases import Release
from gptq_diff.upstream.pack import read_pack, write_pack
from gptq_diff.upstream.plan import BINDINGS, STABLE_ABI, gemm_parameters, plan
from gptq_diff.upstream.select import select
from gptq_diff.upstream.spec import Compiled, CompileSpec
from tests.upstream.made import GEMM, GPTQMODEL, MIDDLE, NEW, OLD, sdist
from tests.upstream.test_pack import packed

TARGET = Path("builds")


def planned(folder: Path, arch: str | None = None) -> CompileSpec:
    """The plan for the pack there."""
    return plan(read_pack(folder), folder, TARGET, arch)


@pytest.mark.parametrize(
    ("gemm", "binding", "defines"),
    [
        (OLD, "gptq_gemm.cpp", ("-DGPTQ_G_IDX",)),
        (MIDDLE, "gptq_gemm.cpp", ("-DGPTQ_G_IDX", "-DGPTQ_V2_FORMAT")),
        (NEW, "gptq_gemm_stable.cpp", ("-DGPTQ_V2_FORMAT", *STABLE_ABI)),
    ],
    ids=["0.5.1", "0.20.2", "0.33.0"],
)
def test_the_three_signatures_and_two_abis(gemm: str, binding: str, defines: tuple[str, ...], tmp_path: Path) -> None:
    """Of vLLM's gptq_gemm: without the v2 flag, with it, and without g_idx for the stable ABI."""
    folder = packed(tmp_path, gemm=gemm)
    spec = planned(folder)
    assert spec.sources == (str(folder / "csrc/quantization/gptq/q_gemm.cu"), str(BINDINGS / binding))
    assert spec.defines == defines
    assert spec.include == (str(folder / "csrc"), str(BINDINGS / "headers"))
    assert (spec.ops, spec.name) == (("_C", "gptq_gemm", "gptq_shuffle"), "gptq_diff_vllm_0_5_1")
    assert all(Path(file).is_file() for file in spec.sources)


def test_an_unknown_signature_is_refused_before_anything_is_compiled(tmp_path: Path) -> None:
    """Called by the wrong meaning it would give numbers, and they would be blamed on the release."""
    folder = packed(tmp_path, gemm=GEMM.format(more="torch::Tensor& b_g_idx, bool use_exllama, bool use_v3,"))
    with pytest.raises(GptqDiffError, match=r"vllm==0\.5\.1 has parameters that are not known: a, .*, use_v3, bit$"):
        planned(folder)
    folder = packed(tmp_path, "other", gemm="void something_else();")
    with pytest.raises(GptqDiffError, match="none that could be found"):
        planned(folder)


def test_a_call_is_no_definition() -> None:
    """Only a definition says what the parameters mean."""
    assert gemm_parameters("x = gptq_gemm(a, b);\n" + OLD)[:2] == ("a", "b_q_weight")
    assert gemm_parameters("x = gptq_gemm(a, b);") == ()


def test_gptqmodel_registers_its_own_operations(tmp_path: Path) -> None:
    """Three sources, with upstream's flags, and no binding of ours."""
    release = Release("gptqmodel", "7.7.0")
    archive = sdist(tmp_path, "gptqmodel-7.7.0", GPTQMODEL)
    write_pack(select(archive, release), release, archive, tmp_path / "pack")
    spec = planned(tmp_path / "pack")
    assert [Path(file).name for file in spec.sources] == ["ext_gptq.cpp", "q_matrix.cu", "q_gemm.cu"]
    assert spec.ops[0] == "gptqmodel_exllamav2"
    assert "-DENABLE_BF16" in spec.cuda_flags


def test_the_recipe_changes_with_what_decides_the_result_and_with_nothing_else(tmp_path: Path) -> None:
    """It is part of a compiled kernel's place, so an old one is not taken for a new one."""
    one = planned(packed(tmp_path, "one"))
    assert planned(packed(tmp_path, "elsewhere")).recipe == one.recipe
    assert planned(packed(tmp_path, "two", gemm=MIDDLE)).recipe != one.recipe
    spec = planned(tmp_path / "one", "9.0")
    assert (spec.arch, spec.recipe, spec.digest) == ("9.0", one.recipe, read_pack(tmp_path / "one").digest)


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize(("g_idx", "v2"), [(True, False), (True, True), (False, True)])
def test_the_bindings_schema_and_its_declaration_agree(stable: bool, g_idx: bool, v2: bool) -> None:
    """Order and kind of the parameters, as the preprocessor leaves them: a mistake would compile, and misread."""
    text = (BINDINGS / ("gptq_gemm_stable.cpp" if stable else "gptq_gemm.cpp")).read_text()
    defined = {name for name, there in (("GPTQ_G_IDX", g_idx), ("GPTQ_V2_FORMAT", v2)) if there}
    macros = {}
    for name, yes, no in re.findall(r"#ifdef (\w+)\n(.*?)#else\n(.*?)#endif", text, re.DOTALL):
        macros.update(re.findall(r"#define (\w+) ?(.*)", yes if name in defined else no))
    for name, value in sorted(macros.items(), reverse=True):
        text = re.sub(rf"\b{name}\b", value.replace("\\", ""), text)
    text = text.replace('" "', "").replace('"\n          "', "")
    declared = re.search(r"\bgptq_gemm\(([^)]*)\);", text)
    schema = re.search(r'ops\.def\("gptq_gemm\((.*?)\) -> Tensor"', text.replace('" "', "").replace('""', ""))
    assert declared is not None and schema is not None
    kinds = {"at::Tensor": "Tensor", "int64_t": "int"}
    parameters = [part.split() for part in declared[1].split(",")]
    assert [f"{kinds.get(kind, kind)} {name}" for kind, name in parameters] == schema[1].split(", ")
    assert ("b_g_idx" in schema[1], "use_v2_format" in schema[1]) == (g_idx, v2)


def test_specs_and_results_survive_the_way_between_processes(tmp_path: Path) -> None:
    """As JSON; a process that ended without a word has no result."""
    spec = planned(packed(tmp_path))
    spec.write(tmp_path / "spec.json")
    assert CompileSpec.read(tmp_path / "spec.json") == spec
    made = Compiled("/folder", None, None, cached=True)
    assert Compiled.read(tmp_path / "result.json") is None
    made.write(tmp_path / "result.json")
    assert Compiled.read(tmp_path / "result.json") == made
