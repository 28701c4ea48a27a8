"""A whole probe as it was asked for, once or again and again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from gptq_diff.errors import CannotJudge, UsageError
from gptq_diff.server_probe.address import Address
from gptq_diff.server_probe.answers import Endpoint
from gptq_diff.server_probe.exchange import Exchange
from gptq_diff.server_probe.find import find
from gptq_diff.server_probe.patience import Caller, Clock
from gptq_diff.server_probe.probe import Plan, Probe
from gptq_diff.server_probe.report import ProbeReport
from gptq_diff.server_probe.server import Found, Manner, Server
from gptq_diff.server_probe.witness import Witness


@dataclass(frozen=True)
class Order:
    """What to probe and how.

    endpoint: None for chat where the server has it, else completions. model: None for the only one there is.
    timeout: seconds for one answer; total: for a whole probe.
    """

    address: Address
    exchange: Exchange
    model: str | None
    endpoint: Endpoint | None
    plan: Plan
    timeout: float
    total: float
    clock: Clock = field(default_factory=Clock)

    def probe(self, source: random.Random, say: Callable[[str], None]) -> ProbeReport:
        """Probe once. What stands in the way of a judgement is in the report; UsageError is for what was asked."""
        started = self.clock.now()
        caller = Caller(self.exchange, self.timeout, self.total, self.clock)
        found: Found | None = None
        manner: Manner | None = None
        witnesses: list[Witness] = []
        say("looking for the API")
        try:
            found = find(caller, self.address, self.model)
            server = Server(caller, self.address, found, Manner(self.endpoint or Endpoint.CHAT))
        except CannotJudge as error:
            hint = f" ({error.hint})" if error.hint else ""
            ended: str | None = f"{error}{hint}"
        else:
            probe = Probe(server, self.plan, source, say)
            probe.run(may_change=self.endpoint is None)
            manner, witnesses, ended = server.manner, probe.witnesses, probe.ended
        return ProbeReport(
            self.address.root, found, None if manner is None else manner.endpoint.value, tuple(witnesses), ended,
            self.clock.now() - started, caller.waited,
        )  # fmt: skip

    def watch(
        self, pause: float, rounds: int | None, source: random.Random, say: Callable[[str], None]
    ) -> Iterator[ProbeReport]:
        """Probe, wait `pause` seconds, probe again; rounds: how often, None without end.

        UsageError ends it in the first round alone: later it is the server that has changed.
        """
        order = replace(self, plan=replace(self.plan, boundary=False))
        done = 0
        while True:
            try:
                yield order.probe(source, say)
            except UsageError as error:
                if not done:
                    raise
                yield ProbeReport(self.address.root, None, None, (), str(error), 0.0, 0.0)
            done += 1
            if rounds is not None and done >= rounds:
                return
            say(f"the next probe is in {pause:.0f} s")
            self.clock.sleep(pause)
