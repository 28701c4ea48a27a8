from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptq_diff.jobs import EventReader, Events, Job, WorkerSpec, capture_key, prompt_of


def job(**changes: object) -> Job:
    values: dict[str, object] = {
        "backend": "hf-fp16", "kernel": "fp16", "prompt": "p1", "token_ids": (1, 2), "max_new_tokens": 3,
        "forced": None, "out": "/out",
    }  # fmt: skip
    return Job(**{**values, **changes})  # type: ignore[arg-type]


def test_a_spec_survives_its_file(tmp_path: Path) -> None:
    """What the worker reads is equal to what the parent meant, token ids and names of any script included."""
    spec = WorkerSpec(
        "transformers", "/models/模型", "float16", "cpu", True, 2, 7, "/events", 123,
        (job(), job(forced=(4, 5), repeat=2), job(forced=(), token_ids=())),
    )  # fmt: skip
    spec.write(tmp_path / "spec.json")
    assert WorkerSpec.read(tmp_path / "spec.json") == spec


def test_no_two_captures_share_a_key() -> None:
    """A repeat's directory cannot be another prompt's: a prompt's id has no @."""
    assert job().key == "p1"
    assert job(repeat=2).key == capture_key("p1", 2) == "p1@2"
    assert [prompt_of(key) for key in ("p1", "p1@2", "a.repeat2@13")] == ["p1", "p1", "a.repeat2"]


def test_events_arrive_once_and_in_order(tmp_path: Path) -> None:
    """Each look gives what is new since the last one."""
    reader = EventReader(tmp_path / "events")
    assert reader.new() == []
    events = Events(tmp_path / "events")
    events.say("loaded", seconds=1.5)
    events.say("step", layer="模型")
    found = reader.new()
    assert [(e["event"], e.get("layer")) for e in found] == [("loaded", None), ("step", "模型")]
    assert found[0]["time"] <= found[1]["time"]
    assert reader.new() == []
    events.say("end")
    assert [e["event"] for e in reader.new()] == ["end"]


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    """Even when it is cut within a character."""
    line = json.dumps({"event": "step", "layer": "模"}, ensure_ascii=False).encode() + b"\n"
    reader = EventReader(tmp_path / "events")
    with (tmp_path / "events").open("ab", buffering=0) as f:
        for end in range(1, len(line)):
            f.write(line[end - 1 : end])
            assert reader.new() == []
        f.write(line[-1:] + b'{"event"')
        assert reader.new() == [{"event": "step", "layer": "模"}]


@pytest.mark.parametrize("line", [b"", b"\xff\xfe", b"{", b"[1]", b'"text"', b'{"no": "event"}'])
def test_what_is_no_event_says_nothing(tmp_path: Path, line: bytes) -> None:
    """A damaged line is passed over, and the next one is read."""
    (tmp_path / "events").write_bytes(line + b'\n{"event": "end"}\n')
    assert EventReader(tmp_path / "events").new() == [{"event": "end"}]
