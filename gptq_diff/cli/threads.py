"""How idle threads of torch's loops wait."""

from __future__ import annotations

import os

SPINS = "1000"
"""Turns an idle thread waits awake before it sleeps, a few microseconds; GNU OpenMP's own default is 300,000."""


def wait_without_spinning() -> None:
    """Let idle OpenMP threads sleep soon, here and in the workers, unless the user has said otherwise.

    By default they spin for milliseconds. Where other programs want the cores too, spinning threads keep the working
    ones waiting: on 2 cores under a load of 8 the demo took 466 s with it and 128 s without. Sleeping at once
    (OMP_WAIT_POLICY=PASSIVE) costs a wake-up of about 0.1 ms in every small loop on a quiet machine; a short spin
    costs neither. OpenMP reads the variables when it is loaded, so this comes before the first import of torch.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
