"""`model fix`: the shifts that captured inputs ask for, and the checkpoint written and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gptq_diff
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.errors import NothingFound, UsageError
from gptq_diff.fix.architecture import joints_of
from gptq_diff.fix.check import check_same
from gptq_diff.fix.joints import Joint
from gptq_diff.fix.plan import LayerBits, Move, Plan, find_shifts, move_by_hand
from gptq_diff.fix.shifted import Shifted
from gptq_diff.fix.write import write_fixed
from gptq_diff.models.options import GainShift
from gptq_diff.session.captured_inputs import CapturedInputs


@dataclass(frozen=True)
class Fixed:
    """What `model fix` made.

    path: the new checkpoint. headroom_bits: what was asked for, None for shifts by hand. moves: all that were tried.
    short: linears that stay below it, by the sum that holds them there. decoded: linears whose weights were compared.
    """

    path: str
    headroom_bits: float | None
    moves: tuple[Move, ...]
    layers: tuple[LayerBits, ...]
    decoded: int

    @property
    def short(self) -> tuple[LayerBits, ...]:
        """Linears that do not reach what was asked for."""
        wanted = self.headroom_bits
        return () if wanted is None else tuple(one for one in self.layers if min(one.after.values()) < wanted)

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "schema_version": 1, "path": self.path, "headroom_bits": self.headroom_bits,
            "shifts": [asdict(move) for move in self.moves], "short": [asdict(one) for one in self.short],
            "changed": [asdict(one) for one in self.layers if one.after != one.before], "checked_linears": self.decoded,
        }  # fmt: skip


def fix_for_headroom(checkpoint: Checkpoint, inputs: CapturedInputs, bits: float, out: Path) -> Fixed:
    """Shift, write and check; NothingFound where every linear has that headroom already."""
    joints = joints_of(checkpoint)
    plan = find_shifts(checkpoint, joints, inputs, bits)
    if not plan.made:
        short = [one.layer for one in plan.layers if min(one.before.values()) < bits]
        why = [f"{move.joint}: {move.reason}" for move in plan.moves]
        if short:
            raise NothingFound(
                f"{len(short)} linears have less than {bits:g} bits, the first {short[0]}, and no shift can change that"
                + (f" ({why[0]})" if why else "")
            )
        raise NothingFound(f"every linear has {bits:g} bits of headroom on these prompts already: nothing to shift")
    return _write(checkpoint, joints, plan, bits, out)


def fix_by_hand(checkpoint: Checkpoint, shifts: Sequence[GainShift], out: Path) -> Fixed:
    """These shifts of down_proj's groups and no others; UsageError for one that cannot be made exactly."""
    joints = joints_of(checkpoint)
    plan = Plan(Shifted(checkpoint))
    for shift in shifts:
        producer = f"model.layers.{shift.block}.mlp.up_proj"
        joint = next((joint for joint in joints if joint.producer == producer), None)
        if joint is None:
            raise UsageError(f"gain shift {shift}: the model has no quantised {producer} with its down_proj")
        move = move_by_hand(plan.shifted, joint, shift.group, shift.gain)
        if move.reason:
            raise UsageError(f"gain shift {shift}: {move.reason}", "choose a gain nearer to 1, or another group")
        plan.moves.append(move)
    if not plan.made:
        raise NothingFound("a gain of 1 shifts nothing")
    return _write(checkpoint, joints, plan, None, out)


def _write(checkpoint: Checkpoint, joints: Sequence[Joint], plan: Plan, bits: float | None, out: Path) -> Fixed:
    record: dict[str, object] = {
        "gptq_diff": gptq_diff.__version__, "from": checkpoint.fingerprint(), "headroom_bits": bits,
        "shifts": [
            {"from": move.producer, "to": list(move.consumers), "groups": move.groups, "gain": move.gain}
            for move in plan.made
        ],
    }  # fmt: skip
    decoded: list[int] = []

    def check(written: Checkpoint) -> None:
        decoded.append(check_same(checkpoint, written, joints, plan.made))

    write_fixed(checkpoint, plan.shifted.changed, record, out, check)
    return Fixed(str(out), bits, tuple(plan.moves), tuple(plan.layers), decoded[0])
