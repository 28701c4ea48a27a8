"""What is done beside the other stages where a GPU makes its sums."""

from __future__ import annotations

import threading

import pytest
import torch

from gptq_diff.errors import CaptureError
from gptq_diff.session.behind import GoOn
from gptq_diff.session.stages import beside


@pytest.mark.parametrize(("device", "before"), [("cpu", False), ("cuda", True)])
def test_it_is_done_in_any_case(device: str, before: bool) -> None:
    """Meanwhile, or afterwards on a CPU, whose cores the other stages need."""
    done, story = threading.Event(), []

    def work(go_on: GoOn) -> None:
        go_on()
        done.set()
        story.append("work")

    with beside(work, on=torch.device(device)):
        assert done.wait(10 if before else 0.05) is before
        story.append("inside")
    assert sorted(story) == ["inside", "work"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_its_failure_is_the_runs(device: str) -> None:
    def fail(go_on: GoOn) -> None:
        raise CaptureError("a tensor is damaged", "run again")

    with pytest.raises(CaptureError, match="a tensor is damaged"), beside(fail, on=torch.device(device)):
        pass
