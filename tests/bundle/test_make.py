"""Bundles of real small runs: what is in them, the same bytes when made twice, and what is said of what is not."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from gptq_diff.bundle import make as making
from gptq_diff.bundle.make import Bundle, Options, make_bundle
from gptq_diff.bundle.verify import verify
from gptq_diff.errors import NothingFound, UsageError
from gptq_diff.records import SkippedBackend
from gptq_diff.report.json_report import read_report, write_report
from tests.session.in_process import FIRST, SECOND, asked, run

Program = Callable[..., tuple[int, str, str]]
BAD = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory, shifted_model: Path) -> Path:
    """A finished run in which the fast path overflows; never write there."""
    with pytest.MonkeyPatch.context() as patch:
        from gptq_diff.session import capture_all
        from tests.session.in_process import run_here

        patch.setattr(capture_all, "run_load", run_here)
        root = tmp_path_factory.mktemp("broken") / "run"
        run(asked(shifted_model, "hf-fp16,sim-exllama,sim-gptq", (FIRST, SECOND), max_new_tokens=2), root)
    make_bundle(root, Options(), lambda _: None)  # reduces once, for all tests
    return root


def contents(bundle: Bundle) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(bundle.data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def made(root: Path, **options: object) -> dict[str, bytes]:
    return contents(make_bundle(root, replace(Options(), **options), lambda _: None))  # type: ignore[arg-type]


def test_what_is_in_it(broken: Path, tmp_path: Path) -> None:
    """Six files at the top, environment and rows below; sound by its own check; the same bytes when made again."""
    bundle = make_bundle(broken, Options(), lambda _: None)
    assert list(contents(bundle))[:6] == [
        "report.html", "report.md", "report.json", "ISSUE.md", "repro.py", "manifest.json",
    ]  # fmt: skip
    rows = {f"rows/{b}.safetensors" for b in ("sim-exllama/p1", "sim-exllama/p2", "sim-gptq/p1", "sim-gptq/p2")}
    assert set(contents(bundle)) - {"environment.json"} == {*list(contents(bundle))[:6], *rows}
    assert bundle.data == make_bundle(broken, Options(), lambda _: None).data
    (tmp_path / "b.zip").write_bytes(bundle.data)
    assert verify(tmp_path / "b.zip").files == bundle.files


def test_the_rows_are_the_captured_ones(broken: Path) -> None:
    """x times the exact weight, computed here in float64, is what stands beside the kernel's y."""
    from gptq_diff.checkpoint.dequant import dequantise
    from gptq_diff.checkpoint.reader import open_checkpoint

    rows = load(made(broken)["rows/sim-exllama/p1.safetensors"])
    with open_checkpoint(Path(read_report(broken / "report.json").model.path)) as checkpoint:
        exact = rows["x"].double() @ dequantise(checkpoint.packed(BAD), torch.float32).double()
    assert rows["x"].dtype == rows["y"].dtype == torch.float16
    assert rows["rows"].tolist() == sorted(set(rows["rows"].tolist()))
    assert torch.isfinite(rows["x"]).all()
    assert bool((~torch.isfinite(rows["y"])).any(dim=1).all())
    assert (rows["exact"].double() - exact).norm() <= 1e-5 * exact.norm()


def test_the_issue_answers_every_question_of_vllms_form(broken: Path) -> None:
    """Its three fields, and within them what the form asks for in words."""
    text = made(broken)["ISSUE.md"].decode()
    fields = [line for line in text.splitlines() if line.startswith("### ")]
    assert fields == [
        "### Your current environment", "### \N{BUG} Describe the bug", "### Before submitting a new issue...",
    ]  # fmt: skip
    for said in (
        "torch: `", "vLLM: not run here", f"{BAD.replace('_', chr(92) + '_')} is the first layer to break",
        "Expected: finite outputs", "`sim-exllama` simulates vLLM's gptq_gemm", "| prompt (tokens) |", "```python",
        "exit 1: the defect is there", "Predicted with a simulation", "gptq-diff model build tiny-qwen2",
        "`hf-fp32`, prompt `p1`: agree", "The error does not appear there", "**accumulator-overflow**", "**works**",
        "No exception is raised", "vllm-project/vllm#10656", "activations can reveal text", "- [ ] Make sure",
    ):  # fmt: skip
        assert said in text, said
    assert len(text) < 65_536


@pytest.mark.parametrize(("engine", "head"), [("gptqmodel", "**Describe the bug**"), ("vllm", "### Your current")])
def test_whose_form_it_is(broken: Path, tmp_path: Path, engine: str, head: str) -> None:
    """The form of the project whose engine broke; every heading of it is there with something below."""
    root = copied(broken, tmp_path)
    report = read_report(root / "report.json")
    write_report(
        replace(report, results=tuple(replace(r, engine=engine) for r in report.results)), root / "report.json"
    )
    text = made(root)["ISSUE.md"].decode()
    assert head in text
    if engine == "gptqmodel":
        for field in ("Describe the bug", "Hardware details", "Software version", "To Reproduce", "Expected behavior",
                      "Screenshots", "Additional context"):  # fmt: skip
            below = text.partition(f"**{field}**")[2].strip()
            assert below
            assert not below.startswith("**")


def copied(root: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(root, tmp_path / "run"))


def test_prompts_come_when_asked_for(broken: Path) -> None:
    """As a prompt file that `run` takes, and their ids in the issue; not otherwise."""
    files = made(broken, include_prompts=True)
    assert [p["token_ids"] for p in json.loads(files["prompts.json"])] == [list(FIRST), list(SECOND)]
    assert str(list(FIRST)) in files["ISSUE.md"].decode()
    assert str(list(FIRST)) not in made(broken)["ISSUE.md"].decode()


def test_a_healthy_run_has_nothing_to_hand_over(broken: Path, tmp_path: Path, program: Program) -> None:
    """Exit code 1, and no file."""
    root = copied(broken, tmp_path)
    report = read_report(root / "report.json")
    verdict = replace(report.verdict, status="agree", backend=None, prompt=None, layer=None)
    write_report(replace(report, verdict=verdict), root / "report.json")
    with pytest.raises(NothingFound):
        make_bundle(root, Options(), lambda _: None)
    code, _, err = program("bundle", root, "-o", tmp_path / "b.zip")
    assert code == 1
    assert "nothing to hand over" in err
    assert not (tmp_path / "b.zip").exists()


def test_one_that_is_too_large_is_not_written(broken: Path, tmp_path: Path, program: Program) -> None:
    code, _, err = program("bundle", broken, "-o", tmp_path / "b.zip", "--max-size", "10kB")
    assert code == 2
    assert "may take 10,000" in err
    assert not (tmp_path / "b.zip").exists()


def test_without_a_repro_the_issue_says_why(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "nothing to reduce: every linear is right"
    monkeypatch.setattr(making, "_reduced", lambda *_: (None, why))
    files = made(broken)
    assert "repro.py" not in files
    assert f"There is none: {why}" in files["ISSUE.md"].decode()


def test_a_wrong_model_is_the_users_error(broken: Path, tmp_path: Path, small_model: Path) -> None:
    """It is not passed over as a reason to go without a repro."""
    root = copied(broken, tmp_path)
    (root / "reduced" / "reduced.json").unlink()
    with pytest.raises(UsageError, match="fingerprint"):
        make_bundle(root, Options(model=str(small_model)), lambda _: None)


def test_a_run_cut_short(broken: Path, tmp_path: Path) -> None:
    """Nothing finished but a reason: still a bundle, whose issue says not to file it."""
    root = copied(broken, tmp_path)
    report = read_report(root / "report.json")
    verdict = replace(report.verdict, status="incomplete", backend=None, prompt=None, layer=None, summary="Nothing.")
    why = "the run was interrupted when 0 of its 2 captures were whole"
    cut = replace(
        report, results=(), headroom=(), verdict=verdict, skipped_backends=(SkippedBackend("hf-fp32", why, ""),)
    )
    write_report(cut, root / "report.json")
    text = made(root)["ISSUE.md"].decode()
    assert "There is no verdict in this run" in text
    assert why in text


def test_the_program(broken: Path, tmp_path: Path, program: Program) -> None:
    code, out, err = program("bundle", broken, "-o", tmp_path / "b.zip", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["size"] == (tmp_path / "b.zip").stat().st_size
    code, _, err = program("bundle")
    assert code == 2
    assert "no run" in err
    code, _, err = program("bundle", tmp_path)
    assert code == 2
