"""Bad input to `gptq-diff run`: one clear sentence, the contract's exit code, no traceback, and nothing written."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptq_diff.session import main_job
from tests.session.damage import DAMAGED_LAYER, edit_config
from tests.session.originals import original_of

Program = Callable[..., tuple[int, str, str]]
IDS = '{"token_ids": [510, 3, 4, 5]}\n'

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def copy(small_model: Path, tmp_path: Path) -> Path:
    """A copy of the small model to be damaged."""
    return Path(shutil.copytree(small_model, tmp_path / "copy"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text(IDS)
    return file


@pytest.fixture
def refused(program: Program, prompts: Path, small_model: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs with these options over sound ones; the sentence (and its hint) that it is refused with."""

    def run(code: int = 2, stdin: str | bytes = b"", **options: Any) -> str:
        given = {"model": small_model, "prompt-file": prompts, "backends": "hf-fp16", "out": tmp_path / "out"} | {
            name.replace("_", "-"): value for name, value in options.items()
        }
        arguments = [part for name, value in given.items() if value is not None for part in (f"--{name}", value)]
        found, out, err = program("run", *arguments, stdin=stdin)
        assert found == code, err
        assert out == ""
        assert "Traceback" not in err
        assert "defect" not in err
        sentences = [line for line in err.splitlines() if line.startswith(("gptq-diff: ", "Error: "))]
        assert len(sentences) == 1, err
        assert len(sentences[0]) < 600
        return sentences[0] + err.partition(sentences[0])[2]

    return run


Refused = Callable[..., str]


class TestModel:
    def test_no_such_directory(self, refused: Refused, tmp_path: Path) -> None:
        assert f"there is no directory {tmp_path / 'nowhere'}" in refused(model=tmp_path / "nowhere")
        assert not (tmp_path / "out").exists()

    def test_a_file(self, refused: Refused, prompts: Path) -> None:
        assert "is a file" in refused(model=prompts)

    def test_an_unknown_hub_id(self, refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        assert "neither a directory nor a Hub id in the local Hugging Face cache" in refused(model="nobody/nothing")

    def test_an_empty_directory(self, refused: Refused, tmp_path: Path) -> None:
        assert "no config.json" in refused(model=tmp_path / "cwd")

    def test_not_a_gptq_checkpoint(self, refused: Refused, copy: Path) -> None:
        edit_config(copy, quantization_config=None)
        (copy / "quantize_config.json").unlink(missing_ok=True)
        assert "quant" in refused(model=copy)

    def test_awq_by_name(self, refused: Refused, copy: Path) -> None:
        edit_config(copy, quantization_config={"quant_method": "awq", "bits": 4, "group_size": 64})
        assert "awq" in refused(model=copy).lower()

    def test_bits_that_are_not_supported(self, refused: Refused, copy: Path) -> None:
        edit_config(copy, quantization_config={"quant_method": "gptq", "bits": 5, "group_size": 64, "sym": True})
        assert "5" in refused(model=copy)

    def test_a_config_that_is_no_json(self, refused: Refused, copy: Path) -> None:
        (copy / "config.json").write_text("{")
        assert "config.json" in refused(model=copy)

    def test_truncated_weights(self, refused: Refused, copy: Path) -> None:
        (file,) = copy.glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-1000])
        assert file.name in refused(model=copy)

    @pytest.mark.parametrize("start", [b"", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}}}}}}}"])
    def test_corrupt_weights(self, refused: Refused, copy: Path, start: bytes) -> None:
        (file,) = copy.glob("*.safetensors")
        file.write_bytes(start)
        assert file.name in refused(model=copy)

    def test_a_missing_shard(self, refused: Refused, copy: Path) -> None:
        (file,) = copy.glob("*.safetensors")
        names = header(file)
        weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors")
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        file.rename(copy / "model-00002-of-00002.safetensors")
        assert "model-00001-of-00002.safetensors" in refused(model=copy)

    def test_no_weights_at_all(self, refused: Refused, copy: Path) -> None:
        (file,) = copy.glob("*.safetensors")
        file.unlink()
        assert "safetensors" in refused(model=copy)

    def test_a_shape_that_does_not_fit(self, refused: Refused, copy: Path) -> None:
        change(copy, f"{DAMAGED_LAYER}.scales", lambda t: t[:1].contiguous())
        assert f"{DAMAGED_LAYER}.scales" in refused(model=copy)

    def test_a_dtype_that_does_not_fit(self, refused: Refused, copy: Path) -> None:
        change(copy, f"{DAMAGED_LAYER}.qweight", lambda t: t.float())
        assert DAMAGED_LAYER in refused(model=copy)

    def test_code_in_the_checkpoint(self, refused: Refused, copy: Path) -> None:
        edit_config(copy, auto_map={"AutoModelForCausalLM": "evil.Model"})
        (copy / "evil.py").write_text("raise SystemExit('it ran')")
        said = refused(model=copy)
        assert "code of its own" in said
        assert "it ran" not in said

    def test_layers_that_the_architecture_does_not_have(
        self, program: Program, copy: Path, prompts: Path, tmp_path: Path
    ) -> None:
        """Only the engine can tell, so every backend fails: exit 3, with the layer in the reason."""
        edit_config(copy, num_hidden_layers=1)
        out = tmp_path / "out"
        code, printed, _ = program("run", "--model", copy, "--prompt-file", prompts, "--out", out, "--json")
        report = json.loads(printed)
        assert code == 3
        assert report["results"] == []
        assert report["verdict"]["status"] == "incomplete"
        assert len(report["skipped_backends"]) == 5
        assert all("model.layers.1" in skipped["reason"] for skipped in report["skipped_backends"])

    def test_an_architecture_that_the_engine_does_not_know(
        self, program: Program, copy: Path, prompts: Path, tmp_path: Path
    ) -> None:
        """Every backend on it is skipped with transformers' own words: exit 3."""
        edit_config(copy, model_type="no-such-model")
        arguments = ("--prompt-file", prompts, "--out", tmp_path / "out", "--json")
        code, printed, _ = program("run", "--model", copy, "--backends", "hf-fp16,sim-gptq", *arguments)
        report = json.loads(printed)
        assert (code, report["results"]) == (3, [])
        assert [skipped["backend"] for skipped in report["skipped_backends"]] == ["hf-fp32", "hf-fp16", "sim-gptq"]
        for skipped in report["skipped_backends"]:
            assert "transformers cannot build this model: " in skipped["reason"]
            assert "no-such-model" in skipped["reason"]


class TestOriginal:
    def test_a_quantised_model(self, refused: Refused, small_model: Path, tmp_path: Path) -> None:
        assert "is quantised itself" in refused(original=small_model)
        assert not (tmp_path / "out").exists()

    def test_no_directory(self, refused: Refused, tmp_path: Path) -> None:
        assert f"there is no directory {tmp_path / 'nowhere'}" in refused(original=tmp_path / "nowhere")

    def test_another_model(self, refused: Refused, tiny_model: Path, tmp_path: Path) -> None:
        original = original_of(tiny_model, tmp_path / "original")
        assert "num_hidden_layers is 4 there and 2 in the quantised model" in refused(original=original)

    def test_the_backend_without_the_model(self, refused: Refused) -> None:
        said = refused(backends="hf-original")
        assert "hf-original needs the unquantised model" in said
        assert "--original DIR" in said

    def test_as_the_reference(self, refused: Refused, small_model: Path, tmp_path: Path) -> None:
        original = original_of(small_model, tmp_path / "original")
        assert "hf-original cannot be the reference" in refused(original=original, reference="hf-original")


class TestReferenceModel:
    def test_of_another_shape(self, refused: Refused, tiny_model: Path, tmp_path: Path) -> None:
        said = refused(reference_model=tiny_model)
        assert "does not fit" in said
        assert "only the reference has model.layers.2" in said
        assert not (tmp_path / "out").exists()

    def test_of_another_group_size(self, refused: Refused, tmp_path: Path) -> None:
        from gptq_diff.models.build import build_model
        from gptq_diff.models.options import BuildOptions

        other = build_model("tiny-qwen2", BuildOptions(blocks=2, group_size=32), tmp_path / "other")
        assert "4 bit, group size 64 in the model and 256 x 128, 4 bit, group size 32 in the reference" in refused(
            reference_model=other
        )

    def test_that_is_not_there(self, refused: Refused, tmp_path: Path) -> None:
        assert "there is no directory" in refused(reference_model=tmp_path / "nowhere")


class TestPrompts:
    def test_text_without_a_tokenizer(self, refused: Refused, copy: Path, prompts: Path) -> None:
        (copy / "tokenizer.json").unlink()
        prompts.write_text('"Hello"\n')
        said = refused(model=copy)
        assert "has no tokenizer" in said
        assert "prompts.jsonl" in said

    def test_token_ids_without_a_tokenizer_are_fine(self, program: Program, copy: Path, tmp_path: Path) -> None:
        """The text is null then; a damaged tokenizer is the same as none."""
        for content in (None, "{"):
            (copy / "tokenizer.json").unlink() if content is None else (copy / "tokenizer.json").write_text(content)
            code, out, _ = program(
                "run", "--model", copy, "--prompt-file", "-", "--backends", "hf-fp32", "--max-new-tokens", 1, "--json",
                stdin=IDS,
            )  # fmt: skip
            assert code == 0
            assert json.loads(out)["results"][0]["text"] is None

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", "empty"),
            (b"\xff\xfe\x00\n", "UTF-8"),
            (b'"a"\n{"prompt": \n', "line 2"),
            (b'{"token_ids": [510, 99999]}\n', "99999"),
            (b'{"token_ids": [-1]}\n', "-1"),
            (b'{"token_ids": []}\n', "line 1"),
            (b'{"prompt": 3}\n', "line 1"),
            (b'{"id": "../x", "prompt": "a"}\n', "line 1"),
            (json.dumps({"token_ids": [1] * 40000}).encode(), "32768"),
        ],
    )
    def test_bad_files(self, refused: Refused, prompts: Path, content: bytes, expected: str, tmp_path: Path) -> None:
        """Every one names the file, and is found before anything runs."""
        prompts.write_bytes(content)
        said = refused()
        assert "prompts.jsonl" in said
        assert expected in said
        assert not (tmp_path / "out").exists()

    def test_no_such_file(self, refused: Refused, tmp_path: Path) -> None:
        assert "nowhere.txt" in refused(prompt_file=tmp_path / "nowhere.txt")

    def test_an_unknown_kind_of_file(self, refused: Refused, small_model: Path) -> None:
        assert "config" in refused(prompt_file=small_model / "tokenizer_config.csv")

    def test_nothing_on_standard_input(self, refused: Refused) -> None:
        assert "empty" in refused(prompt_file="-")

    def test_standard_input_that_is_closed(self, small_model: Path) -> None:
        """Python has no sys.stdin then."""
        command = f'"{sys.executable}" -m gptq_diff run --model "{small_model}" --prompt-file - <&-'
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr


class TestBackends:
    def test_an_unknown_one_with_the_nearest_name(self, refused: Refused) -> None:
        said = refused(backends="sim-exlama")
        assert "no backend named 'sim-exlama'" in said
        assert "sim-exllama" in said

    def test_an_unknown_reference(self, refused: Refused) -> None:
        said = refused(reference="hf-fp23")
        assert "no backend named 'hf-fp23'" in said
        assert "hf-fp32" in said

    def test_none_at_all(self, refused: Refused) -> None:
        """An empty list is not the default."""
        assert "empty entry" in refused(backends="")

    def test_twice_the_same(self, refused: Refused) -> None:
        assert "twice" in refused(backends="hf-fp16,hf-fp16")

    def test_an_interpreter_that_is_not_there(self, refused: Refused, tmp_path: Path) -> None:
        assert "no Python interpreter" in refused(backends=f"hf-fp16@{tmp_path / 'python'}")

    def test_an_interpreter_in_a_project_config(self, refused: Refused, tmp_path: Path) -> None:
        """A checkout must not choose what runs: exit 2, naming the line."""
        (tmp_path / "cwd" / "gptq-diff.toml").write_text('[run]\nseed = 1\nbackends = "hf-fp16@./evil"\n')
        said = refused(backends=None)
        assert "gptq-diff.toml" in said
        assert "line 3" in said or ":3" in said


class TestNumbers:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("max_new_tokens", 0),
            ("max_new_tokens", -1),
            ("max_new_tokens", "many"),
            ("repeats", 0),
            ("timeout", 0),
            ("timeout", -5),
            ("timeout", "nan"),
            ("seed", -1),
            ("seed", 2**63),
            ("capture_budget", -1),
            ("capture_budget", "lots"),
            ("capture", "some"),
            ("device", "gpu"),
            ("device", "cuda:"),
            ("device", "cuda:-1"),
            ("device", "cuda:1,2"),
        ],
    )
    def test_out_of_range(self, refused: Refused, option: str, value: object) -> None:
        """The option is named."""
        assert "size" in refused(**{option: value}) or option.replace("_", "-") in refused(**{option: value})


class TestOutput:
    def test_a_file_in_the_way(self, refused: Refused, prompts: Path) -> None:
        assert "cannot be written" in refused(out=prompts)
        assert "cannot be written" in refused(out=prompts / "below")

    def test_a_place_that_cannot_be_written(self, refused: Refused) -> None:
        assert "cannot be written" in refused(out="/proc/gptq-diff")

    def test_a_directory_of_somebody_elses(
        self, refused: Refused, program: Program, small_model: Path, prompts: Path, tmp_path: Path
    ) -> None:
        """Refused with --overwrite too; nothing in it is touched."""
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("x")
        assert "not empty and not a run" in refused()
        arguments = ("--model", small_model, "--prompt-file", prompts, "--out", tmp_path / "out", "--overwrite")
        code, _, err = program("run", *arguments)
        assert code == 2
        assert "not empty and not a run" in err
        assert (tmp_path / "out" / "thesis.tex").read_text() == "x"

    def test_an_earlier_run(
        self, refused: Refused, program: Program, small_model: Path, prompts: Path, tmp_path: Path
    ) -> None:
        """--overwrite replaces it, and what else lies there stays."""
        arguments = ["run", "--model", small_model, "--prompt-file", prompts, "--backends", "hf-fp32", "--out"]
        arguments += [tmp_path / "out", "--max-new-tokens", 1]
        assert program(*arguments)[0] == 0
        (tmp_path / "out" / "notes.txt").write_text("mine")
        assert "already holds a run" in refused()
        assert program(*arguments, "--overwrite")[0] == 0
        assert (tmp_path / "out" / "notes.txt").read_text() == "mine"

    def test_one_in_use(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        with (tmp_path / "out" / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert "in use by another run" in refused()

    @pytest.fixture
    def full_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system of 64 KiB."""
        place = tmp_path / "disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("no tmpfs can be mounted here (needs root)")
        yield place
        subprocess.run(["umount", str(place)], check=True)

    def test_too_small_a_disk(self, refused: Refused, full_disk: Path) -> None:
        """What the run will store is known beforehand: nothing runs."""
        said = refused(out=full_disk / "out", code=2)
        assert "of tensors until they are judged" in said and "has 0.0 GB free" in said

    def test_a_full_disk(self, refused: Refused, full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever meets it first, worker or parent, the sentence names it; nothing is left running."""
        monkeypatch.setattr(main_job, "check_room", lambda *_: None)  # others may fill it while the run goes on
        said = refused(out=full_disk / "out", code=2)
        assert "No space left on device" in said


def header(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file."""
    data = file.read_bytes()
    return [name for name in json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]) if name != "__metadata__"]


def change(model: Path, name: str, how: Callable[[Any], Any]) -> None:
    """Replace one tensor."""
    from safetensors.torch import load_file, save_file

    (file,) = model.glob("*.safetensors")
    tensors = load_file(file)
    tensors[name] = how(tensors[name])
    save_file(tensors, file)
