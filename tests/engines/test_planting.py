"""A fault planted in the transformers engine's kernel: there while the job runs, gone afterwards."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from gptq_diff.engines.base import Engine, LoadSpec
from gptq_diff.engines.hf import HfEngine
from gptq_diff.engines.planting import fault_in
from gptq_diff.errors import BackendError
from gptq_diff.jobs import Job, Plant, WorkerSpec
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions

LAYER = "model.layers.1.mlp.up_proj"
IDS = (510, 3, 4, 5, 6)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    model = build_model("tiny-qwen2", BuildOptions(), tmp_path_factory.mktemp("planting") / "model")
    return HfEngine(LoadSpec("transformers", model, "float16", "cpu", trust_remote_code=False, threads=1, seed=0))


def job_of(plant, repeat=1):
    return Job("hf-fp16", "fp16", "p", IDS, 2, None, "/nowhere", repeat, plant)


def product(engine, layer=LAYER):
    """That linear's product of a fixed input."""
    x_MK = torch.randn((4, 128), generator=torch.Generator().manual_seed(0)).half()
    return engine.multiply(layer, x_MK).y_MN.clone()


@pytest.mark.parametrize("kind", ["scale-group", "unknown", "dtype", "shard-order"])
def test_it_is_there_for_as_long_as_the_job_runs(engine, kind):
    """At the linear that is named and at no other; what it was before it is again."""
    before, other = product(engine), product(engine, "model.layers.2.mlp.up_proj")
    with engine.planted(job_of(Plant(kind, LAYER, 0.9, 1))):
        during = product(engine)
        assert torch.equal(product(engine, "model.layers.2.mlp.up_proj"), other)
    assert not torch.equal(during, before)
    assert torch.equal(product(engine), before)


def test_a_fault_between_linears_is_taken_out_again(engine):
    """What patches the model undoes it, also when the job fails."""
    before = engine.generate(IDS, max_new_tokens=1, forced=None, tap=None).first_logits_V
    fault = engine.planted(job_of(Plant("outside-linears", LAYER, 1.0, 1)))
    with pytest.raises(RuntimeError, match="the job failed"), fault:
        during = engine.generate(IDS, max_new_tokens=1, forced=None, tap=None).first_logits_V
        raise RuntimeError("the job failed")
    assert not torch.equal(during, before)
    assert torch.equal(engine.generate(IDS, max_new_tokens=1, forced=None, tap=None).first_logits_V, before)


def test_a_job_without_a_fault_runs_on_the_sound_kernel(engine):
    """The usual case costs nothing and changes nothing."""
    kernel = engine.kernel
    with engine.planted(job_of(None)):
        assert engine.kernel is kernel


def test_the_same_seed_is_the_same_fault(engine):
    """And another seed another one."""
    plants = [Plant("nibble-order", LAYER, 0.4, seed) for seed in (1, 1, 2)]
    first, again, other = (fault_in(engine, job_of(plant), plant).misread[LAYER].qweight for plant in plants)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_what_is_drawn_at_every_call_differs_from_repeat_to_repeat(engine):
    """A race that gave one answer in both repeats would be none."""
    plant = Plant("race-or-uninitialised", LAYER, 0.7, 1)
    products = []
    for repeat in (1, 2, 1):
        with engine.planted(job_of(plant, repeat)):
            products.append(product(engine))
    assert torch.equal(products[0], products[2])
    assert not torch.equal(products[0], products[1])


@pytest.mark.parametrize(("kind", "why"), [("result-overflow", "it is the model's own"), ("g-idx-ignored", "in order")])
def test_a_fault_without_a_place_is_refused(engine, kind, why):
    """With the reason that the planter gives."""
    with pytest.raises(BackendError, match=why), engine.planted(job_of(Plant(kind, LAYER, 0.9, 0))):
        pass


def test_other_engines_refuse():
    """No kernel of vLLM or of a library can be made to go wrong; a run without the fault would pass in silence."""

    class Other(HfEngine):
        planted = Engine.planted

        def __init__(self):
            pass

    with pytest.raises(BackendError, match="no fault can be planted in this engine's kernels"):
        Other().planted(job_of(Plant("clamp", LAYER, 0.9, 0)))


def test_a_job_takes_its_fault_through_the_spec(tmp_path):
    """Written by the parent, read by the worker; old specs have none."""
    job = job_of(Plant("clamp", LAYER, 0.9, 3))
    spec = WorkerSpec("transformers", "/m", "float16", "cpu", False, 0, 0, "/e", 1, (job, replace(job, plant=None)))
    spec.write(tmp_path / "spec.json")
    assert WorkerSpec.read(tmp_path / "spec.json").jobs == spec.jobs
    raw = json.loads((tmp_path / "spec.json").read_text())
    assert raw["jobs"][0]["plant"] == asdict(job.plant)
