"""hf-original: what quantisation changes, told apart from what a kernel does wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.errors import UsageError
from gptq_diff.exit_codes import exit_code
from gptq_diff.launch import Listener, Load, Outcome
from gptq_diff.report.json_report import read_report
from gptq_diff.session import capture_all
from gptq_diff.session.again import compare_again
from gptq_diff.session.asked import RunRecord
from gptq_diff.session.original import check_reference, with_original
from gptq_diff.session.prepare import prepare_backends
from tests.engines.models import Tensors, tied, unpacked
from tests.session.in_process import FIRST, SECOND, asked, result, run, run_here
from tests.session.originals import original_of

CHANGED = "model.layers.1.mlp.up_proj"


def noisy(tensors: Tensors) -> None:
    """Another up_proj in block 1, as far from the quantised one as rounding to 4 bits is."""
    weight = tensors[f"{CHANGED}.weight"]
    weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def same(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unquantised model whose weights are exactly the quantised ones."""
    return original_of(small_model, tmp_path_factory.mktemp("originals") / "same")


@pytest.fixture(scope="module")
def other(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a linear that quantisation has changed."""
    return original_of(small_model, tmp_path_factory.mktemp("originals") / "other", noisy)


@pytest.mark.usefixtures("here")
class TestRuns:
    def test_weights_that_quantisation_kept_differ_by_nothing(
        self, small_model: Path, same: Path, tmp_path: Path
    ) -> None:
        """The same tokens, float32's rounding at every linear; nothing is judged, and the others' verdict stands."""
        report = run(asked(small_model, "hf-fp16", (FIRST, SECOND), original=same), tmp_path / "run")
        assert [r.backend for r in report.results] == [b for b in ("hf-fp32", "hf-fp16", "hf-original") for _ in "ab"]
        for prompt in ("p1", "p2"):
            plain, reference = result(report, "hf-original", prompt), result(report, "hf-fp32", prompt)
            assert (plain.status, plain.tokens) == ("agree", reference.tokens)
            assert plain.first_token_kl is not None and plain.first_token_kl < 1e-9
            error = plain.quantization_error
            assert error is not None and error.worst_l2_rel is not None
            assert len(error.layers) == 14
            assert error.worst_l2_rel < 3e-6
            assert all((e.inherited_l2_rel or 0.0) < 1e-4 for e in error.layers.values())
            assert plain.layers.compared == 0
            assert len(plain.layers.skipped) == 14
            assert {s.reason for s in plain.layers.skipped} == {
                "it is not quantised in this backend, so there is no kernel to judge"
            }
            assert (plain.worst_excess, plain.first_bad, plain.kernel) == (None, None, {"*": "original"})
        assert report.verdict.summary.startswith("All 2 backends agree with the exact answer")
        assert "compared 14 of 14" in report.verdict.summary
        assert exit_code(report) == 0

    def test_the_error_of_quantisation_is_found_where_it_is(
        self, small_model: Path, other: Path, tmp_path: Path
    ) -> None:
        """One linear errs on its own, those after it inherit, those before are as they were; no kernel is blamed."""
        report = run(asked(small_model, "hf-fp16", original=other, capture="full"), tmp_path / "run")
        plain = result(report, "hf-original")
        error = plain.quantization_error
        assert error is not None and error.worst_l2_rel is not None and error.median_l2_rel is not None
        assert error.worst_layer == CHANGED
        assert error.median_l2_rel < 3e-6
        after = error.layers["model.layers.1.mlp.down_proj"]
        before = error.layers["model.layers.1.mlp.gate_proj"]
        assert (before.inherited_l2_rel or 0.0) < 1e-4 < 1e-3 < (after.inherited_l2_rel or 0.0)
        assert (after.local_l2_rel or 1.0) < 3e-6
        assert result(report, "hf-fp16").status == plain.status == "agree"
        assert exit_code(report) == 0
        x = RunDir(tmp_path / "run").reader("hf-original", "p1").tensor(0, CHANGED, "in").double()
        quantised = x @ unpacked(load_file(small_model / "model.safetensors"), CHANGED).double().t()
        original = x @ load_file(other / "model.safetensors")[f"{CHANGED}.weight"].double().t()
        expected = float((original - quantised).norm() / quantised.norm())
        assert error.worst_l2_rel == pytest.approx(expected, rel=1e-4)
        assert 0.01 < expected < 0.3

    def test_a_broken_kernel_is_still_found_beside_it(self, shifted_model: Path, tmp_path: Path) -> None:
        """The gain shift makes the fast path overflow; the unquantised model of the same weights agrees."""
        original = original_of(shifted_model, tmp_path / "original")
        report = run(asked(shifted_model, "sim-exllama", original=original), tmp_path / "run")
        assert result(report, "sim-exllama").status == "overflow"
        assert result(report, "hf-original").status == "agree"
        assert exit_code(report) == 1

    def test_an_original_that_collapses_is_said_to(self, small_model: Path, tmp_path: Path) -> None:
        """Its own output is all that there is to say of it: NaN logits are not agreement."""

        def broken(tensors: Tensors) -> None:
            tensors["model.norm.weight"].fill_(float("nan"))

        original = original_of(small_model, tmp_path / "original", broken)
        plain = result(run(asked(small_model, original=original), tmp_path / "run"), "hf-original")
        assert (plain.status, plain.collapsed, plain.collapse_token) == ("collapsed", True, 0)

    def test_it_alone_is_no_agreement(
        self, small_model: Path, same: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where every kernel failed, nothing was compared: exit 3, whatever --allow-skip says."""

        def failing(load: Load, listen: Listener, follow_up: object = None) -> list[Outcome]:
            if load.spec.original:
                return run_here(load, listen)
            return [Outcome(b, failure="died") for b in dict.fromkeys(job.backend for job in load.spec.jobs)]

        monkeypatch.setattr(capture_all, "run_load", failing)
        report = run(asked(small_model, original=same, allow_skip=True), tmp_path / "run")
        assert [r.backend for r in report.results] == ["hf-original"]
        assert report.verdict.status == "incomplete"
        assert exit_code(report) == 3

    def test_repeats_do_not_make_it_nondeterministic(self, small_model: Path, same: Path, tmp_path: Path) -> None:
        """It has no noise floor that a repeat could pass."""
        report = run(asked(small_model, original=same, repeats=2), tmp_path / "run")
        assert result(report, "hf-original").status == "agree"

    def test_the_report_and_the_run_name_it(self, small_model: Path, same: Path, tmp_path: Path) -> None:
        """Path, architecture and fingerprint; and all of it reads back, and can be compared again."""
        report = run(asked(small_model, original=same), tmp_path / "run")
        assert report.original_model is not None
        assert report.original_model.path == str(same)
        assert report.original_model.architecture == "Qwen2ForCausalLM"
        assert report.original_model.fingerprint != report.model.fingerprint
        assert read_report(tmp_path / "run" / "report.json") == report
        raw = RunDir(tmp_path / "run").run()
        assert json.loads(json.dumps(RunRecord.from_json(raw).to_json())) == raw
        again = compare_again(tmp_path / "run", None, None, allow_skip=False, say=lambda line: None)
        without_time = [replace(r, seconds={}) for r in report.results]
        assert [replace(r, seconds={}) for r in again.results] == without_time

    def test_tied_weights(self, small_model: Path, tmp_path: Path) -> None:
        """The output head comes from the embedding where the file has none."""
        model = tied(small_model, tmp_path / "tied")
        report = run(asked(model, original=original_of(model, tmp_path / "original")), tmp_path / "run")
        assert result(report, "hf-original").tokens == result(report, "hf-fp32").tokens


@pytest.mark.usefixtures("here")
def test_every_result_says_what_it_took(small_model: Path, same: Path, tmp_path: Path) -> None:
    """Loading and judging by backend, generating by prompt; the shares of judging are there for the original too."""
    report = run(asked(small_model, "hf-fp16", (FIRST, SECOND), original=same), tmp_path / "run")
    assert all(set(r.seconds) - {"between"} == {"load", "generate", "judge"} for r in report.results)
    assert all(r.seconds["judge"] > 0 for r in report.results)
    a, b = (result(report, "hf-fp16", p).seconds for p in ("p1", "p2"))
    assert a["judge"] == b["judge"]
    assert a["generate"] != b["generate"]


class TestWhatIsAsked:
    def test_giving_it_adds_the_backend(self, tmp_path: Path) -> None:
        assert [b.name for b in prepare_backends("hf-fp16", "hf-fp32", tmp_path)] == [
            "hf-fp32", "hf-fp16", "hf-original",
        ]  # fmt: skip
        assert [b.name for b in prepare_backends("hf-original,hf-fp32", "hf-fp32", tmp_path)] == [
            "hf-original", "hf-fp32",
        ]  # fmt: skip
        assert "hf-original" in [b.name for b in prepare_backends(None, "hf-fp32", tmp_path)]

    def test_naming_it_without_a_model_is_refused(self) -> None:
        with pytest.raises(UsageError, match="hf-original needs the unquantised model"):
            prepare_backends("hf-fp16,hf-original", "hf-fp32")

    def test_by_default_it_stays_out(self) -> None:
        assert "hf-original" not in [b.name for b in prepare_backends(None, "hf-fp32")]
        assert with_original((), None, named=False) == ()

    def test_it_is_no_reference(self, tmp_path: Path) -> None:
        """Kernels are compared with the quantised model's exact answers."""
        with pytest.raises(UsageError, match="cannot be the reference"):
            check_reference("hf-original")
        with pytest.raises(UsageError, match="cannot be the reference"):
            prepare_backends("hf-original", "hf-original", tmp_path)


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def narrow(tensors: Tensors) -> None:
    tensors[f"{CHANGED}.weight"] = tensors[f"{CHANGED}.weight"][:, :64].contiguous()


class TestMisfits:
    """Exit 2 with one sentence that says what does not fit, before anything runs."""

    def refused(self, model: Path, original: Path) -> str:
        with pytest.raises(UsageError) as caught:
            asked(model, original=original)
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_no_directory(self, small_model: Path, tmp_path: Path) -> None:
        assert f"there is no directory {tmp_path / 'none'}" in self.refused(small_model, tmp_path / "none")

    def test_no_model(self, small_model: Path, tmp_path: Path) -> None:
        assert "no config.json" in self.refused(small_model, tmp_path)

    def test_a_quantised_one(self, small_model: Path) -> None:
        assert "is quantised itself: it has the tensor model.layers.0.mlp.down_proj.qweight" in self.refused(
            small_model, small_model
        )

    def test_one_that_says_that_it_is_quantised(self, small_model: Path, same: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(same, tmp_path / "copy"))
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
        assert "its config.json has a quantization_config" in self.refused(small_model, copy)

    def test_weights_that_are_no_safetensors(self, small_model: Path, same: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(same, tmp_path / "copy"))
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
        assert "no *.safetensors file" in self.refused(small_model, copy)

    def test_code_of_its_own(self, small_model: Path, same: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(same, tmp_path / "copy"))
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
        assert "code of its own" in self.refused(small_model, copy)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (drop(f"{CHANGED}.weight"), f"it has no tensor {CHANGED}.weight"),
            (narrow, f"{CHANGED}.weight has the shape [256, 64] there, and the quantised linear [256, 128]"),
        ],
    )
    def test_other_tensors(
        self, small_model: Path, tmp_path: Path, change: Callable[[Tensors], object], said: str
    ) -> None:
        found = self.refused(small_model, original_of(small_model, tmp_path / "original", change))
        assert "is not what --model" in found
        assert said in found

    def test_another_size(self, small_model: Path, tiny_model: Path, tmp_path: Path) -> None:
        found = self.refused(small_model, original_of(tiny_model, tmp_path / "original"))
        assert "num_hidden_layers is 4 there and 2 in the quantised model" in found

    @pytest.mark.usefixtures("here")
    def test_what_only_the_engine_can_tell_costs_its_backend(self, small_model: Path, tmp_path: Path) -> None:
        """A norm that is missing: the others get their verdict."""
        original = original_of(small_model, tmp_path / "original", drop("model.norm.weight"))
        report = run(asked(small_model, original=original), tmp_path / "run")
        (skipped,) = report.skipped_backends
        assert skipped.backend == "hf-original"
        assert skipped.reason == "the checkpoint lacks the tensor model.norm.weight"
        assert report.verdict.status == "agree"
        assert exit_code(report) == 3
