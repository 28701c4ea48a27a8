"""All tensor-parallel ranks from the engine's side: what each captured is put together, and must agree on.

The ranks are vLLM's own worker processes. Each keeps its tensors in a directory of its own; nothing but names, small
numbers and tokens goes through vLLM's calls.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from gptq_diff.capture.store import CaptureReader
from gptq_diff.capture.tap import ALL_REDUCE, REPLICATED, Tap, stored_name
from gptq_diff.engines.base import Generation
from gptq_diff.engines.vllm.rank_calls import BEGIN, END, LOAD_FAILED, PEAK, USE_KERNEL, first_line
from gptq_diff.errors import BackendError, CaptureError


@dataclass
class _Prompt:
    """What the first rank told of one prompt, once it has ended."""

    told: dict[str, Any] = field(default_factory=dict)

    def generation(self) -> Generation:
        """In the engine's own words."""
        told = self.told
        logits_V = torch.tensor(told["first_logits"], dtype=torch.float32)
        return Generation(tuple(told["tokens"]), tuple(told["finite"]), logits_V, told["steps"], told["cached_rows"])


class Ranks:
    """The ranks of one vllm.LLM. scratch: directory for their tensors, emptied after every prompt."""

    def __init__(self, llm: Any, scratch: Path) -> None:
        self._llm = llm
        self._scratch = scratch
        self._facts: list[dict[str, Any]] = []

    def use_kernel(self, name: str) -> None:
        """Every rank checks its own modules; the first refusal is the engine's."""
        self._facts = self._ask(USE_KERNEL, name)
        for key in ("skipped", "tapped", "reduced"):
            if any(facts[key] != self._facts[0][key] for facts in self._facts):
                raise BackendError(f"vLLM's ranks do not agree on what is {key}", "this model is not understood")

    @property
    def skipped(self) -> dict[str, str]:
        """Layer -> why it is not judged."""
        return dict(self._facts[0]["skipped"])

    @property
    def tapped(self) -> frozenset[str]:
        """Every linear of a judged module."""
        return frozenset(self._facts[0]["tapped"])

    @property
    def boundaries(self) -> dict[int, int]:
        """Bits -> rows up to which the first rank's gptq_gemm takes its fast path."""
        return dict(self._facts[0]["boundaries"]) if self._facts else {}

    def gpu_peak(self) -> int | None:
        """The sum of the ranks' peaks since the last call, each on its own GPU; None where they use none."""
        peaks = [answer["gpu"] for answer in self._ask(PEAK) if answer["gpu"] is not None]
        return sum(peaks) if peaks else None

    @contextlib.contextmanager
    def watching(
        self, rows: int, forced: tuple[int, ...] | None, tap: Tap | None, *, caches: bool
    ) -> Iterator[_Prompt]:
        """One prompt of that many tokens; what it gave is there once the context is left. caches: as in Steps."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        place, ids = None if tap is None else str(self._scratch), None if forced is None else list(forced)
        self._ask(BEGIN, place, rows, ids, caches)
        try:
            yield (prompt := _Prompt())
        except RuntimeError as e:  # what a rank raised comes back as this, with its own words in it
            raise CaptureError(f"vLLM's ranks failed: {first_line(e)}", "its log has more") from e
        try:
            told = self._ask(END)
            if tap is not None:
                self._put_together(told[0]["steps"], len(told), tap)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        prompt.told = told[0]

    def _put_together(self, steps: int, ranks: int, tap: Tap) -> None:
        """Every linear of every step into the tap, as if one process had computed it."""
        with contextlib.ExitStack() as undo:
            readers = [CaptureReader(self._scratch / f"rank-{rank}") for rank in range(ranks)]
            for reader in readers:
                undo.callback(reader.close)
            paths = {(line["step"], line["layer"]): line["path"] for line in readers[0].stats() if not line["part"]}
            for step in range(steps):
                tap.begin_step(step)
                for layer in readers[0].manifest.order:
                    self._join(layer, step, readers, tap, paths[step, layer])
                tap.end_step()

    def _join(self, layer: str, step: int, readers: list[CaptureReader], tap: Tap, path: str) -> None:
        x = [reader.tensor(step, layer, "in") for reader in readers]
        y = [reader.tensor(step, layer, "out") for reader in readers]
        places = [facts["places"][layer] for facts in self._facts]
        if layer not in self._facts[0]["reduced"]:
            tap.record(layer, x[0], side_by_side(y, [column for _, column in places]), path)
            copies = {column: [out for (_, c), out in zip(places, y) if c == column] for _, column in places}
            self._same(layer, [x, *copies.values()], tap)
            return
        for rank, (row, _) in enumerate(places):
            tap.record(layer, x[rank], y[rank], path, part=str(rank), first=row)
        stored = stored_name(layer, ALL_REDUCE)
        summands = torch.cat([reader.tensor(step, stored, "in") for reader in readers])
        sums = [reader.tensor(step, stored, "out") for reader in readers]
        tap.record(layer, summands, sums[0], ALL_REDUCE, part=ALL_REDUCE)
        self._same(layer, [sums], tap)

    def _same(self, layer: str, replicated: list[list[torch.Tensor]], tap: Tap) -> None:
        """Record the first copy that has other bits than the first of its kind; nothing where all are alike."""
        for copies in replicated:
            for copy in copies[1:]:
                if not torch.equal(copies[0].view(torch.int16), copy.view(torch.int16)):
                    tap.record(layer, copies[0], copy, REPLICATED, part=REPLICATED)
                    return

    def _ask(self, method: str, *arguments: object) -> list[dict[str, Any]]:
        """One call to every rank; what a rank reports as wrong is raised here."""
        answers: list[dict[str, Any]] = self._llm.collective_rpc(method, args=arguments)
        for rank, answer in enumerate(answers):
            if "error" in answer:
                kind = CaptureError if answer["kind"] == "capture" else BackendError
                raise kind(f"rank {rank}: {answer['error']}", answer["hint"])
        return answers


def side_by_side(parts: list[torch.Tensor], columns: list[int]) -> torch.Tensor:
    """[M, N] from the ranks' columns; where two hold the same ones (fewer kv heads than ranks) the first counts."""
    chosen: dict[int, torch.Tensor] = {}
    for column, part in zip(columns, parts):
        chosen.setdefault(column, part)
    return torch.cat([chosen[column] for column in sorted(chosen)], dim=1)


class Explained:
    """While vLLM starts its ranks: a failure of one is told in that rank's words, not as "see stack trace"."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def __enter__(self) -> None:
        self._scratch.mkdir(parents=True, exist_ok=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        said = self._scratch / LOAD_FAILED
        if kind is not None and issubclass(kind, Exception) and said.is_file():
            raise BackendError(said.read_text(encoding="utf-8"), "its log has more") from error
