"""Headroom of a judged run: how near every capture's sums come to overflow, layer by layer, and the nearest of all.

RUN/diagnosed/BACKEND/PROMPT.headroom.json holds for each linear (LAYER@RANK under tensor parallelism) the sums that its
kernel holds in float16; the reference's has those of every kernel, since one asks of a prompt which kernel it breaks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.align import STEPS_AFTER, Captured
from gptq_diff.compare.judge_run import Key, open_captures
from gptq_diff.diagnose.headroom import Nearest, Share, arithmetics_of, every_arithmetic, measure, share_of
from gptq_diff.errors import CaptureError
from gptq_diff.records import ORIGINAL, Headroom, LayerSpec, Result, swept_prompt
from gptq_diff.session.asked import RunRecord

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint


@dataclass(frozen=True)
class _Stack:
    """The inputs of one linear, or of a rank's share of it, that went through the same sums, below each other.

    first: row of W that x's first column meets. steps: (step, rows) of each call, in the order of the rows.
    ran: whether the arithmetics are those of the kernel that ran.
    """

    stored: str
    first: int
    wanted: tuple[str, ...]
    x_MK: torch.Tensor
    steps: tuple[tuple[int, int], ...]
    ran: bool

    def place(self, row: int) -> tuple[int, int]:
        """(step, row of that step's x) of a row of the stack."""
        for step, rows in self.steps:
            if row < rows:
                return step, row
            row -= rows
        raise AssertionError("a row beyond the stack")


def measure_headroom(
    run: RunDir, record: RunRecord, keys: Sequence[Key], judge: Checkpoint, loaded: Checkpoint
) -> None:
    """Write the headroom of those captures; layers whose tensors are gone keep what was measured before.

    Of a sweep over prompt lengths only the longest of each prompt is measured: it holds the rows of all others.
    """
    captures = open_captures(run, _longest(keys) if record.sweep else list(keys), record.reference)
    found: dict[Key, dict[str, list[Headroom]]] = {key: {} for key in captures}
    for spec in judge.layers:
        done: list[tuple[_Stack, dict[str, Nearest]]] = []
        shares: dict[bool, Share] = {}
        for key, captured in captures.items():
            is_reference = key[0] == record.reference
            for stack in _stacks(captured, spec, is_reference=is_reference):
                own = judge if is_reference or loaded is judge else loaded
                if (own is judge) not in shares:
                    shares[own is judge] = share_of(own.packed(spec.name))
                near = _measured(stack, shares[own is judge], done if own is loaded else [])
                rows = found[key].setdefault(stack.stored, [])
                rows += [_headroom(key, stack, name, nearest) for name, nearest in near.items()]
    for key, layers in found.items():
        captures[key].reader.close()
        path = headroom_file(run, key)
        earlier = {name: rows for name, rows in read_headroom(path).items() if name not in layers}
        write_headroom(path, {**earlier, **layers})


def _longest(keys: Sequence[Key]) -> list[Key]:
    """Of every backend and swept prompt the greatest length (its digits are padded with zeros)."""
    last: dict[Key, Key] = {}
    for backend, prompt in keys:
        swept = (backend, swept_prompt(prompt))
        last[swept] = max(last.get(swept, (backend, prompt)), (backend, prompt))
    return list(last.values())


def _stacks(captured: Captured, spec: LayerSpec, *, is_reference: bool) -> Iterator[_Stack]:
    places: dict[tuple[str, int, tuple[str, ...], bool], list[int]] = {}
    for place in captured.places.get(spec.name, []):
        if place.path in STEPS_AFTER or place.path == ORIGINAL:
            continue
        if captured.reader.has(place.step, place.stored, "in"):
            wanted = every_arithmetic(spec) if is_reference else arithmetics_of(place.path, spec)
            places.setdefault((place.stored, place.first, wanted, not is_reference), []).append(place.step)
    for (stored, first, wanted, ran), steps in places.items():
        inputs = [captured.reader.tensor(step, stored, "in").to(torch.float16) for step in steps]
        rows = tuple((step, len(x_MK)) for step, x_MK in zip(steps, inputs))
        yield _Stack(stored, first, wanted, torch.cat(inputs), rows, ran)


def _measured(stack: _Stack, share: Share, done: list[tuple[_Stack, dict[str, Nearest]]]) -> dict[str, Nearest]:
    """Measure, or take what another backend's very same input gave."""
    for other, near in done:
        same = other.first == stack.first and set(stack.wanted) <= set(other.wanted)
        if same and torch.equal(other.x_MK, stack.x_MK):
            return {name: nearest for name, nearest in near.items() if name in stack.wanted}
    near = measure(stack.x_MK, share.rows(stack.first, stack.x_MK.shape[1]), stack.wanted)
    done.append((stack, near))
    return near


def _headroom(key: Key, stack: _Stack, arithmetic: str, near: Nearest) -> Headroom:
    step, row = stack.place(near.row)
    return Headroom(
        backend=key[0], ran=stack.ran, arithmetic=arithmetic, bits=round(near.bits, 4), layer=stack.stored,
        prompt=key[1], step=step, row=row, column=near.column, channel=stack.first + near.channel,
        activation=near.activation, weight=near.weight, value=near.value, terms=near.terms,
    )  # fmt: skip


def headroom_file(run: RunDir, key: Key) -> Path:
    """Where the headroom of one capture lies."""
    return run.root / "diagnosed" / key[0] / f"{key[1]}.headroom.json"


def write_headroom(path: Path, layers: dict[str, list[Headroom]]) -> None:
    """Write whole or not at all; nothing where nothing was measured."""
    if not layers:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({name: [asdict(row) for row in rows] for name, rows in layers.items()}, indent=1))
    part.replace(path)


def read_headroom(path: Path) -> dict[str, list[Headroom]]:
    """By linear as stored; empty when it was never measured, CaptureError for a damaged file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return {name: [Headroom(**row) for row in rows] for name, rows in raw.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as e:
        raise CaptureError(f"{path} is damaged: {e}", "remove it, then `gptq-diff compare` with --model") from e


def noted(result: Result, layers: dict[str, list[Headroom]]) -> Result:
    """The result with `headroom_bits`: of each linear the smallest, over its steps, ranks and kernel's sums.

    The reference sums in float32 or better: of it the result counts, as float16 would hold it.
    """
    bits: dict[str, float] = {}
    for stored, rows in layers.items():
        counted = [row.bits for row in rows if row.ran or row.arithmetic == "result"]
        if counted:
            layer = stored.partition("@")[0]
            bits[layer] = min([*counted, bits.get(layer, counted[0])])
    return replace(result, headroom_bits=bits)


def nearest_of_all(measured: Sequence[dict[str, list[Headroom]]]) -> tuple[Headroom, ...]:
    """For every backend and arithmetic the smallest headroom over all prompts, in the order given."""
    best: dict[tuple[str, str], Headroom] = {}
    for layers in measured:
        for row in (row for rows in layers.values() for row in rows):
            known = best.get((row.backend, row.arithmetic))
            if known is None or row.bits < known.bits:
                best[row.backend, row.arithmetic] = row
    return tuple(best.values())
