"""The small files of a run: read as they were written, nothing where there is nothing, a sentence where damaged."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptq_diff.between_file import between_file, read_between, write_between
from gptq_diff.diagnosed_file import read_findings, write_findings
from gptq_diff.errors import CaptureError
from gptq_diff.judged_file import read_judged, write_judged
from gptq_diff.records import Between, Finding, Judgement, RowMap
from gptq_diff.rows_file import read_rows, rows_file, write_rows
from tests.report.generated import Maker

TEXTS = ("", "short", "model.layers.3.mlp.up_proj", "Ünïcode 字", 'quo"te\\n', "exllama-fast")
MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SEEDS = st.integers(0, 2**32)


def row_map(make: Maker) -> RowMap:
    """Maps as large as they say."""
    layers = tuple(f"layers.{i}" for i in range(make.rng.randint(0, 4)))
    bins = tuple((0, i, i) for i in range(make.rng.randint(0, 4)))
    code = [base64.b64encode(make.rng.randbytes(2 * len(layers) * len(bins))).decode() for _ in range(3)]
    return RowMap(layers, bins, *code, ((0, 0, 3),))


@dataclass(frozen=True)
class Kind:
    """How one kind of file is made, written and read; empty: what is read where there is none."""

    made: Callable[[Maker], Any]
    write: Callable[[Path, Any], None]
    read: Callable[[Path], Any]
    empty: Any


KINDS = {
    "judged": Kind(
        lambda make: make.value("", tuple[Judgement, ...]), write_judged, lambda p: tuple(read_judged(p)), ()
    ),
    "between": Kind(lambda make: make.value("", Between), write_between, read_between, None),
    "findings": Kind(lambda make: make.value("", tuple[Finding, ...]), write_findings, read_findings, None),
    "rows": Kind(row_map, write_rows, read_rows, None),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@MANY
@given(seed=SEEDS)
def test_it_is_read_as_it_was_written(tmp_path: Path, kind: Kind, seed: int) -> None:
    """Field for field, in a folder that is made for it; written again the bytes are the same."""
    value, file = kind.made(Maker(random.Random(seed), TEXTS)), tmp_path / "a" / "b" / "file"
    kind.write(file, value)
    assert kind.read(file) == value
    first = file.read_bytes()
    kind.write(file, kind.read(file))
    assert file.read_bytes() == first
    assert [path.name for path in file.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_where_there_is_none_nothing_is_read(tmp_path: Path, kind: Kind) -> None:
    """A capture that was never judged is no error."""
    assert kind.read(tmp_path / "missing") == kind.empty


@pytest.mark.parametrize("damage", [b"{", b"[1]", b"null", b"\xff\xfe", b'{"layer": 3}', b'"text"'], ids=repr)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_damaged_one_names_itself_and_what_to_do(tmp_path: Path, kind: Kind, damage: bytes) -> None:
    file = tmp_path / "damaged"
    file.write_bytes(damage)
    with pytest.raises(CaptureError, match="damaged") as told:
        kind.read(file)
    assert str(file) in str(told.value)
    assert "gptq-diff" in (told.value.hint or "")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@MANY
@given(seed=SEEDS, share=st.floats(0, 1, exclude_max=True))
def test_half_a_file_is_never_taken_for_a_whole_one(tmp_path: Path, kind: Kind, seed: int, share: float) -> None:
    """Cut off anywhere: a sentence, or (where lines stand for themselves) fewer of them, the first ones."""
    value, file = kind.made(Maker(random.Random(seed), TEXTS)), tmp_path / "file"
    kind.write(file, value)
    whole = file.read_bytes()
    cut = whole[: int(share * len(whole.rstrip(b"\n")))]
    file.write_bytes(cut)
    try:
        found = kind.read(file)
    except CaptureError:
        return
    assert kind is KINDS["judged"]
    assert found == value[: len(found)]


def test_a_map_that_is_smaller_than_it_says_is_refused(tmp_path: Path) -> None:
    """Or a page would draw what is not there."""
    code = base64.b64encode(b"\0" * 4).decode()
    write_rows(tmp_path / "rows", RowMap(("a",), ((0, 0, 0),), code, code, code, ()))
    with pytest.raises(CaptureError, match="not as large as it says"):
        read_rows(tmp_path / "rows")


def test_files_of_one_capture_lie_beside_each_other(tmp_path: Path) -> None:
    """Under the names that docs/tour.md gives them."""
    assert rows_file(tmp_path, "b", "p") == tmp_path / "judged" / "b" / "p.rows.json"
    assert between_file(tmp_path, "b", "p") == tmp_path / "judged" / "b" / "p.between.json"
