"""Every experiment on kernels with a known fault, and on sound ones, where it has to stay silent."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from gptq_diff.diagnose.experiments.all_probes import PROBES
from gptq_diff.engines import linear_calls
from gptq_diff.kernels.base import Product
from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.kernels.sim_gptq import SimGptq
from gptq_diff.kernels.sim_reconstruct import SimReconstruct
from tests.diagnose.experiments.lab import FAST, HALF, RECONSTRUCT, Bench, findings


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def test_a_fast_path_that_overflows_is_told_as_such(bench: Bench) -> None:
    """Scaling cures it, one row and one slice of K carry it, and it fails up to 50 rows: told in numbers."""
    found = bench.experiments(lambda x: SimGptq().multiply(x, bench.linear), bench.outlier())
    assert findings(found) == {"scaled-input": "accumulator-overflow", "row-sweep": "row-path"}
    scaled, sweep, slices = found["scaled-input"], found["row-sweep"], found["k-slices"]
    # 9000 times code -8 passes 65520, 4500 times -8 does not; which codes it meets decides whether more is needed
    assert scaled.figures["halvings"] == 1
    assert scaled.figures["input_absmax"] == 9000
    assert scaled.finding is not None and scaled.finding.confidence == 0.9
    assert "x / 2 gives the right answer (y times 2, error " in scaled.evidence[0]
    assert found["single-rows"].evidence == ("1 of 12 rows fail alone: row 3",)
    assert sweep.figures["path_border"] == sweep.figures["verdict_border"] == sweep.figures["bits_border"] == 50
    assert [(r.first, r.last, r.path, r.kind) for r in sweep.ranges] == [
        (1, 50, FAST, "overflow"), (51, 64, RECONSTRUCT, "ok"),
    ]  # fmt: skip
    assert "it fails with 1 to 50 rows and with no other number from 1 to 64" in sweep.evidence
    assert (slices.figures["bad_alone"], slices.figures["first_channel"], slices.figures["last_channel"]) == (
        1,
        128,
        255,
    )
    assert found["repeats"].evidence == ("all 20 repeats have the same bits",)
    assert found["zero-input"].evidence == ("zero gives zero",)


@pytest.mark.parametrize("kernel", [SimExllama, SimReconstruct, SimGptq])
def test_a_sound_simulator_gives_no_finding(bench: Bench, kernel: type) -> None:
    """Of a healthy kernel only repeats and the row sweep are made; they say what they saw, and blame nobody."""
    made = kernel()
    found = bench.experiments(lambda x: made.multiply(x, bench.linear), bench.x())
    assert list(found) == ["row-sweep", "repeats"]
    assert findings(found) == {}
    border = 50 if kernel is SimGptq else None
    assert found["row-sweep"].figures["path_border"] == border
    assert {r.kind for r in found["row-sweep"].ranges} == {"ok"}


def test_a_border_is_found_where_no_path_is_named(bench: Bench) -> None:
    """By its error: another arithmetic from 24 rows on under one name."""

    def kernel(x_MK: torch.Tensor) -> Product:
        if len(x_MK) < 24:
            return bench.half(x_MK)
        return Product(SimReconstruct().multiply(x_MK, bench.linear).y_MN, RECONSTRUCT)

    def unnamed(x_MK: torch.Tensor) -> Product:
        return Product(kernel(x_MK).y_MN, RECONSTRUCT)

    found = bench.experiments(unnamed, bench.x())["row-sweep"]
    assert found.figures["path_border"] is None
    assert found.figures["error_border"] == 23
    assert "the error changes between 23 and 24 rows, although one path is named" in found.evidence


def test_sums_in_another_order_are_noise_with_a_size(bench: Bench) -> None:
    """As atomics do: other bits each time, within what two roundings explain; information on a sound kernel."""
    draw = random.Random(1)

    def kernel(x_MK: torch.Tensor) -> Product:
        return Product(bench.blocks(x_MK, draw.sample(range(4), 4)), FAST)

    found = bench.experiments(kernel, bench.x())
    assert findings(found) == {"repeats": "split-k-noise"}
    repeats = found["repeats"]
    assert repeats.finding is not None and repeats.finding.layer is None
    assert 0 < (repeats.figures["other_bits"] or 0) <= 19
    assert 0 < (repeats.figures["largest_l2_rel"] or 0) < 2e-3
    assert 0 < (repeats.figures["share_of_two_roundings"] or 0) < 1
    assert (repeats.figures["largest_ulp"] or 0) >= 1


def test_a_race_is_more_than_noise(bench: Bench) -> None:
    """Every third call loses what one block has added: some repeats are wrong, the others right."""
    count = itertools.count()

    def kernel(x_MK: torch.Tensor) -> Product:
        order = [0, 1, 3] if next(count) % 3 == 0 else [0, 1, 2, 3]
        return Product(bench.blocks(x_MK, order), FAST)

    found = bench.experiments(kernel, bench.x())
    repeats = found["repeats"].finding
    assert repeats is not None and repeats.cause == "race-or-uninitialised"
    assert any("repeats are wrong, the others right" in sentence for sentence in found["repeats"].evidence)
    assert "accumulator-overflow" not in findings(found).values()


def test_noise_near_the_threshold_is_no_race(bench: Bench) -> None:
    """An error that passes it now and then, by sums in another order, is the same error all the time."""
    draw = random.Random(2)

    def kernel(x_MK: torch.Tensor, scale: float) -> Product:
        return Product((bench.blocks(x_MK, draw.sample(range(4), 4)).float() * scale).half(), FAST)

    verdicts = set()
    for step in range(10, 15):
        found = bench.experiments(lambda x, s=step: kernel(x, 1 + s * 1e-4), bench.x())["repeats"]
        verdicts.add(found.figures["bad"])
        assert found.finding is None or found.finding.cause == "split-k-noise"
    assert any(bad not in (0, 20) for bad in verdicts)  # the threshold was crossed in between


def test_a_fault_that_never_comes_back_is_a_race_too(bench: Bench) -> None:
    """The call of the model was wrong, and no repeat of it is."""
    calls = iter([True])

    def kernel(x_MK: torch.Tensor) -> Product:
        product = bench.half(x_MK)
        return Product(product.y_MN * 2 if next(calls, False) else product.y_MN, HALF)

    found = bench.experiments(kernel, bench.x())
    finding = found["repeats"].finding
    assert finding is not None and (finding.cause, finding.confidence) == ("race-or-uninitialised", 0.8)
    assert found["repeats"].figures["as_captured"] == 0
    assert found["scaled-input"].evidence == ("the fault does not show when this linear is run by itself",)
    assert list(findings(found)) == ["repeats"]


def test_memory_that_was_not_cleared_shows_nan(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that adds to what it finds; here the allocator is one that certainly hands out what was freed last."""
    free: list[torch.Tensor] = []

    def leave(like: Product) -> None:
        free.append(torch.full_like(like.y_MN, float("nan")))

    def kernel(x_MK: torch.Tensor) -> Product:
        found = free.pop() if free else torch.zeros((len(x_MK), 64), dtype=torch.float16)
        wrong_MN = bench.half(x_MK).y_MN * 1.5
        wrong_MN[0] += found[0]
        return Product(wrong_MN, HALF)

    monkeypatch.setattr(linear_calls, "leave_dirt", leave)
    found = bench.experiments(kernel, bench.x())
    assert findings(found) == {"dirty-memory": "race-or-uninitialised"}
    assert found["dirty-memory"].figures["new_nan"] == 64
    assert "with NaN left in free memory 64 outputs more are NaN" in found["dirty-memory"].evidence[0]


def test_a_bias_in_the_kernel_shows_in_zero(bench: Bench) -> None:
    """Zero input gives exactly it; anything else that is not zero is nobody's."""
    assert bench.linear.bias is not None
    bias_N = bench.linear.bias
    found = bench.experiments(lambda x: Product(bench.half(x).y_MN + bias_N, HALF), bench.x())
    assert findings(found) == {"zero-input": "bias"}
    found = bench.experiments(lambda x: Product(bench.half(x).y_MN + 0.5, HALF), bench.x())
    assert findings(found) == {"zero-input": "race-or-uninitialised"}


def test_a_wrong_group_is_found_in_its_slice(bench: Bench) -> None:
    """A scale that is off by half diverges in the slice of its group, whatever the size of x: it is no overflow."""
    wrong_KN = bench.w_KN.clone()
    wrong_KN[320:384] *= 1.5

    found = bench.experiments(lambda x: Product((x.float() @ wrong_KN).half(), HALF), bench.x())
    assert findings(found) == {}
    assert found["k-slices"].evidence == ("1 of 4 slices of 128 inputs fail alone: channels 256 to 383",)
    assert found["scaled-input"].evidence == (
        "the fault stays however small the input is, down to x / 4,096: it is no overflow",
    )


def test_slices_that_only_break_together_are_named(bench: Bench) -> None:
    """An accumulator that two slices fill: no slice fails alone, the shortest run of neighbours that does is found."""
    x_MK = bench.x()
    x_MK[2] = 0
    x_MK[2, 128:384] = torch.sign(bench.w_KN[128:384, 5]).half() * 300

    def kernel(x_MK: torch.Tensor) -> Product:
        """Sums of x times sign(w) are kept in float16."""
        signs = x_MK.double() @ torch.sign(bench.w_KN).double()
        y_MN = bench.half(x_MK).y_MN
        return Product(torch.where(signs.abs() > 300 * 200, float("inf"), y_MN), HALF)

    found = bench.experiments(kernel, x_MK)
    slices = found["k-slices"]
    assert slices.evidence == ("no slice of 128 inputs fails alone; it takes the 2 slices of channels 128 to 383",)
    assert slices.figures["bad_alone"] == 0
    assert findings(found)["scaled-input"] == "accumulator-overflow"


def test_a_mild_fault_is_no_overflow_where_subnormals_cover_it(bench: Bench) -> None:
    """Small inputs become subnormal when they are halved: what hides the error there does not cure it."""
    x_MK = (bench.x() * 2.0**-8).half()
    found = bench.experiments(lambda x: Product(bench.half(x).y_MN * (1 + 2.0**-8), HALF), x_MK)
    assert found["scaled-input"].finding is None


def test_an_overflow_of_the_result_is_no_accumulators(bench: Bench) -> None:
    """Scaling cures it as well, but the exact answer itself is beyond float16."""
    x_MK = bench.x()
    x_MK[1] = torch.sign(bench.w_KN[:, 7]).half() * 20000
    assert float(bench.exact(x_MK)[1].abs().max()) > 65520
    found = bench.experiments(bench.half, x_MK)
    assert "scaled-input" not in findings(found)
    assert (found["scaled-input"].figures["halvings"] or 0) >= 1


def test_rows_that_fail_only_together_are_told(bench: Bench) -> None:
    """One row's neighbour decides: alone it is right."""

    def kernel(x_MK: torch.Tensor) -> Product:
        y_MN = bench.half(x_MK).y_MN.clone()
        if len(x_MK) > 5:
            y_MN[4] = float("nan")
        return Product(y_MN, HALF)

    found = bench.experiments(kernel, bench.x())
    assert found["single-rows"].evidence == (
        "0 of 12 rows fail alone", "the 1 row wrong together with others is right alone",
    )  # fmt: skip


def test_rows_without_a_finite_input_are_not_judged(bench: Bench) -> None:
    """They are in the call, since they count as rows, and in no verdict."""
    x_MK = bench.outlier()
    x_MK[0, 0] = float("inf")
    subject = bench.subject(lambda x: SimExllama().multiply(x, bench.linear), x_MK)
    assert subject.finite_rows == tuple(range(1, 12))
    assert subject.bad_rows == (3,)
    found = bench.experiments(lambda x: SimExllama().multiply(x, bench.linear), x_MK)
    assert found["single-rows"].figures["rows"] == 11
    assert findings(found) == {"scaled-input": "accumulator-overflow"}


def test_a_long_call_is_cut_and_keeps_its_bad_rows(bench: Bench) -> None:
    """512 rows are above every kernel's border; the bad one is among them wherever it was."""
    subject = bench.subject(lambda x: SimExllama().multiply(x, bench.linear), bench.outlier(rows=700, row=650))
    assert subject.x_MK.shape[0] == 512
    assert subject.x_MK[subject.worst, 200] == 9000
    assert len(subject.looked_at) == 64
    assert subject.worst in subject.looked_at


def test_nothing_is_asked_twice(bench: Bench) -> None:
    """Names of calls are unique, and every probe's begin with its own."""
    subject = bench.subject(lambda x: SimExllama().multiply(x, bench.linear), bench.outlier())
    for probe in PROBES:
        names = [call.name for call in probe.plan(subject, {})]
        assert len(set(names)) == len(names)
        assert all(name.startswith(f"{probe.name}/") for name in names)
