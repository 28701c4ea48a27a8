"""The process of a real engine, played by small scripts: what it says, what it asks, and what becomes of it."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.faults import real, served
from benchmarks.faults.plant.fault import Fault
from gptq_diff.jobs import Job, WorkerSpec

HEAD = """
import json, os, sys
import numpy as np
answers = os.fdopen(int(sys.argv[1]), "w")
def say(value):
    answers.write(json.dumps(value) + "\\n"); answers.flush()
for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
"""
ASKS = (
    HEAD
    + """
    folder = request["folder"]
    np.savez(folder + "/asked.npz", x=np.ones((1, 2)), y=np.full((1, 3), 5.0))
    say({"spoil": request["spoil"][0]})
    sys.stdin.readline()
    say({"versions": {"sum": str(np.load(folder + "/given.npy").sum())}})
"""
)
REFUSES = (
    HEAD
    + """    say({"error": "ValueError: not this model"})
"""
)
DIES = (
    HEAD
    + """    print("out of luck"); sys.exit(3)
"""
)


@pytest.fixture
def process(tmp_path, monkeypatch):
    made = []

    def start(script):
        file = tmp_path / f"served-{len(made)}.py"
        file.write_text(script)
        monkeypatch.setattr(real, "served", SimpleNamespace(__file__=str(file)))
        made.append(real.Process(real.Path(sys.executable), tmp_path / f"engine-{len(made)}"))
        return made[-1]

    yield start
    for one in made:
        one.end()


def spec():
    return WorkerSpec("vllm", "m", "float16", "", False, 1, 0, "events", os.getpid(), ())


JOB = Job("vllm", "as-chosen", "p1", (1, 2), 1, None, "out")


def test_products_are_spoiled_by_the_parent(process):
    """The engine's process shows x and y, gets back what the fault makes of them, and the change is recorded."""
    fault = Fault("unknown", "", ("l",), spoil={"l": lambda x, y: y + x.sum()})
    process(ASKS).capture(spec(), [JOB], [fault])
    np.testing.assert_array_equal(fault.changes["l"][0], np.full((1, 3), 2.0))


def test_a_refusal_is_an_error_and_the_process_lives(process):
    """What an engine says of a model is told, and the next request is served."""
    one = process(REFUSES)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not this model"):
            one.capture(spec(), [JOB], [])


def test_a_lost_process_is_told_with_its_last_words(process):
    """So that another can be started."""
    one = process(DIES)
    with pytest.raises(real.EngineLostError, match="out of luck"):
        one.capture(spec(), [JOB], [])
    with pytest.raises(real.EngineLostError):
        one.capture(spec(), [JOB], [])


def test_a_hanging_process_is_given_up(process, monkeypatch):
    """After a while without an answer."""
    monkeypatch.setattr(real, "PATIENCE", 0.2)
    with pytest.raises(real.EngineLostError, match="said nothing"):
        process(HEAD).capture(spec(), [JOB], [])


class Halved(nn.Module):
    bias: torch.Tensor | None = None

    def forward(self, x):
        return x / 2 if self.bias is None else x / 2 + self.bias


def test_a_librarys_module_is_spoiled_below_the_tap_and_restored():
    """Its forward gives what was asked for, in rows, and is its own again afterwards."""
    module = Halved()
    linear = SimpleNamespace(spec=SimpleNamespace(name="l"), module=module)
    engine = SimpleNamespace(_linears=[linear])
    x = torch.ones(1, 4, 2)
    with served.spoiled(engine, frozenset({"l"}), lambda name, x_MK, y_MN: y_MN + x_MK.shape[0]):
        assert torch.equal(module(x), torch.full((1, 4, 2), 4.5))
    assert torch.equal(module(x), x / 2) and "forward" not in vars(module)


def test_what_spoils_a_product_does_not_see_the_bias_that_comes_after_it():
    """Of a module and of a fused linear: (product spoiled) + bias, never (product + bias) spoiled."""
    module = Halved()
    module.bias = torch.full((2,), 10.0)
    engine = SimpleNamespace(_linears=[SimpleNamespace(spec=SimpleNamespace(name="l"), module=module)])
    with served.spoiled(engine, frozenset({"l"}), lambda name, x_MK, y_MN: y_MN * 3):
        assert module(torch.ones(1, 4, 2)).tolist() == [[[11.5, 11.5]] * 4]
    assert module.bias.tolist() == [10.0, 10.0] and module(torch.ones(1, 2)).tolist() == [[10.5, 10.5]]
    method = SimpleNamespace(apply=lambda layer, x, bias=None: x / 2 if bias is None else x / 2 + bias)
    part = SimpleNamespace(spec=SimpleNamespace(name="l"), first=0, last=2)
    linear = SimpleNamespace(module=nn.Module(), method=method, parts=[part])
    engine = SimpleNamespace(_model=SimpleNamespace(_linears=[linear]))
    with served.spoiled(engine, frozenset({"l"}), lambda name, x_MK, y_MN: y_MN * 3):
        assert method.apply(linear.module, torch.ones(1, 2), torch.full((2,), 10.0)).tolist() == [[11.5, 11.5]]


def test_a_part_of_a_fused_linear_is_spoiled_alone():
    """Of vLLM's fused product only the columns of the planted linear change, and other modules not at all."""
    module, other = nn.Module(), nn.Module()
    method = SimpleNamespace(apply=lambda layer, x, bias=None: x.repeat(1, 2))
    parts = [SimpleNamespace(spec=SimpleNamespace(name=n), first=2 * i, last=2 * i + 2) for i, n in enumerate("qk")]
    linear = SimpleNamespace(module=module, method=method, parts=parts)
    engine = SimpleNamespace(_model=SimpleNamespace(_linears=[linear]))
    x = torch.ones(3, 2)
    with served.spoiled(engine, frozenset({"k"}), lambda name, x_MK, y_MN: y_MN * 7):
        assert method.apply(module, x).tolist() == [[1, 1, 7, 7]] * 3
        assert method.apply(other, x).tolist() == [[1, 1, 1, 1]] * 3
    assert method.apply(module, x).tolist() == [[1, 1, 1, 1]] * 3


def test_jobs_cross_the_pipe_whole():
    """Token ids and forced ids are tuples again."""
    raw = {**vars(JOB), "token_ids": [1, 2], "forced": [3]}
    assert served.job_of(raw) == Job("vllm", "as-chosen", "p1", (1, 2), 1, (3,), "out")
