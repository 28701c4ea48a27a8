"""Products are taken from another simulator's capture bit for bit, and only where its arithmetic is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gptq_diff.capture.store import CaptureReader
from gptq_diff.engines import known
from gptq_diff.jobs import Events, Job, WorkerSpec
from gptq_diff.worker import Hands, load_engine

SHORT, LONG = (510, 3, 4, 5), (510, *range(5, 60))


class Quiet(Events):
    def __init__(self) -> None:
        pass

    def say(self, event: str, **values: object) -> None:
        pass


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def capture(model: Path, out: Path, kernels: list[str], ids: tuple[int, ...], **more: object) -> dict[str, Path]:
    """One load, the kernels one after the other on one prompt."""
    jobs = tuple(Job(k, k, "p", ids, 3, None, str(out / k), **more) for k in kernels)  # type: ignore[arg-type]
    spec = WorkerSpec("transformers", str(model), "float16", "cpu", False, 1, 0, "", 0, jobs)
    Hands(load_engine(spec), Quiet()).work(jobs)
    return {k: out / k for k in kernels}


def everything(directory: Path) -> dict[str, torch.Tensor]:
    """Every stored tensor, and what was said of it."""
    reader = CaptureReader(directory)
    found = {key: reader.tensor(int(key.split("/")[0]), *key.split("/")[1:]) for key in reader.manifest.where}
    return {**found, "logits": reader.first_logits()}


@pytest.mark.parametrize("ids", [SHORT, LONG])
@pytest.mark.parametrize("mode", ["", "-targeted"])
def test_captures_are_those_of_separate_loads(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: tuple[int, ...], mode: str
) -> None:
    """All tensors, paths, tokens: bit for bit what each simulator gives alone, whatever was taken from another."""
    kernels = [f"sim-exllama{mode}", "sim-reconstruct", f"sim-gptq{mode}"]
    taken: list[int] = []
    multiply = known.Knowing.multiply

    def counted(self: known.Knowing, *arguments: object) -> object:
        before = self.taken
        product = multiply(self, *arguments)  # type: ignore[arg-type]
        taken.append(self.taken - before)
        return product

    monkeypatch.setattr(known.Knowing, "multiply", counted)
    together = capture(small_model, tmp_path / "together", kernels, ids)
    assert sum(taken) >= 14  # at least the prefill's linears of sim-gptq
    for kernel in kernels:
        alone = capture(small_model, tmp_path / f"alone-{kernel}", [kernel], ids)[kernel]
        mine, theirs = everything(together[kernel]), everything(alone)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k].view(torch.uint8), theirs[k].view(torch.uint8)) for k in mine)
        one, other = CaptureReader(together[kernel]), CaptureReader(alone)
        assert one.paths == other.paths and one.manifest.tokens == other.manifest.tokens
        assert one.manifest.kernels == other.manifest.kernels


@pytest.mark.parametrize(
    ("kernels", "more"),
    [
        (["fp16", "sim-gptq"], {}),  # another arithmetic
        (["sim-exllama", "sim-gptq-targeted"], {}),  # it may bound what the other simulated
        (["sim-exllama", "sim-exllama"], {}),  # a kernel does not vouch for itself
    ],
)
def test_nothing_else_is_taken(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: list[str], more: dict[str, object]
) -> None:
    """Another arithmetic, another mode, the same kernel again: all is computed."""
    monkeypatch.setattr(known, "Product", lambda *_: pytest.fail("a product was taken"))
    jobs = [Job(k, k, "p", SHORT, 2, None, str(tmp_path / str(i)), **more) for i, k in enumerate(kernels)]
    spec = WorkerSpec("transformers", str(small_model), "float16", "cpu", False, 1, 0, "", 0, tuple(jobs))
    Hands(load_engine(spec), Quiet()).work(jobs)


def test_a_repeat_is_computed_anew(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Determinism is judged by repeats: the second run takes nothing from the first one of another simulator."""
    monkeypatch.setattr(known, "Product", lambda *_: pytest.fail("a product was taken"))
    jobs = [
        Job("sim-exllama", "sim-exllama", "p", SHORT, 2, None, str(tmp_path / "a"), repeat=1),
        Job("sim-gptq", "sim-gptq", "p", SHORT, 2, None, str(tmp_path / "b"), repeat=2),
    ]
    spec = WorkerSpec("transformers", str(small_model), "float16", "cpu", False, 1, 0, "", 0, tuple(jobs))
    Hands(load_engine(spec), Quiet()).work(jobs)
