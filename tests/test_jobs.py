from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff.jobs import (
    EventReader,
    Events,
    Job,
    LinearCall,
    LinearJob,
    WorkerSpec,
    capture_key,
    hand_out,
    handed_out,
    prompt_of,
    round_file,
)

LINEAR = LinearJob(
    "vllm-gptq", "gptq-by-rows", "model.layers.1.mlp.down_proj", "/x", (
        LinearCall("plain", (0, 1, 2)),
        LinearCall("all", (0, 0, 4), halvings=3, kept=((0, 128), (256, 300)), repeats=20, dirty=True, keep=(0, 2)),
        LinearCall("nothing", (1,), zero=True),
    ), "/out/层",
)  # fmt: skip


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


def test_a_spec_of_an_earlier_version_can_be_read(tmp_path: Path) -> None:
    """One without what was added since: no linear by itself, no further jobs."""
    spec = WorkerSpec("transformers", "/model", "float16", "cpu", True, 2, 7, "/events", 123, (job(),))
    spec.write(tmp_path / "spec.json")
    raw = json.loads((tmp_path / "spec.json").read_text())
    for key in ("follow_up", "room"):
        del raw[key]
    (tmp_path / "spec.json").write_text(json.dumps(raw))
    assert WorkerSpec.read(tmp_path / "spec.json") == spec


def test_both_kinds_of_jobs_survive_their_file(tmp_path: Path) -> None:
    """In the spec as well as in a round of further ones; before that there are none, and an empty round is one."""
    spec = WorkerSpec("vllm", "/m", "float16", "cpu", True, 2, 7, "/e", 1, (job(), LINEAR), follow_up="/f", room=60)
    spec.write(tmp_path / "spec.json")
    assert WorkerSpec.read(tmp_path / "spec.json") == spec
    first = round_file(tmp_path, 1)
    assert handed_out(first) is None
    hand_out([LINEAR, job(forced=(1,))], first)
    assert handed_out(first) == (LINEAR, job(forced=(1,)))
    hand_out([], round_file(tmp_path, 2))
    assert handed_out(round_file(tmp_path, 2)) == ()


def test_the_longest_job_counts_with_what_may_come() -> None:
    """Room for further prompts, and none needed by a linear alone."""
    spec = WorkerSpec("vllm", "/m", "float16", "cpu", True, 2, 7, "/e", 1, (job(), LINEAR))
    assert spec.longest == 5
    assert replace(spec, room=61).longest == 61
    assert replace(spec, jobs=(LINEAR,)).longest == 0


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
