"""Cases run without worker processes, in models that are built once."""

from __future__ import annotations

import pytest

from gptq_diff.session import capture_all
from tests.cases import in_process


@pytest.fixture
def without_processes(monkeypatch):
    """Workers' jobs are done in this process."""
    monkeypatch.setattr(capture_all, "run_load", in_process.run_load)
