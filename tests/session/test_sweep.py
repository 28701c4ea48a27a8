"""--sweep-tokens: which prompts are made, and at which lengths the verdict changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.errors import UsageError
from gptq_diff.prompts.tokenise import fingerprint
from gptq_diff.records import Prompt, PromptInfo, Result, SweepRange
from gptq_diff.report.json_report import read_report
from gptq_diff.report.sweeps import at_the_changes, sweep_lines
from gptq_diff.session.again import compare_again
from gptq_diff.session.asked import RunRecord
from gptq_diff.session.sweep import Lengths, parse_lengths, sweeps, swept
from tests.report.build import a_report, a_result
from tests.session.in_process import FIRST, asked, run

OVERFLOWS = "model.layers.1.mlp.down_proj"


class TestLengths:
    @pytest.mark.parametrize(("text", "lengths"), [("1:4", [1, 2, 3, 4]), ("2:9:3", [2, 5, 8]), ("7:7", [7])])
    def test_ranges(self, text: str, lengths: list[int]) -> None:
        """Both ends belong to the range, as far as the step reaches."""
        assert list(parse_lengths(text).all()) == lengths

    @pytest.mark.parametrize(
        "text", ["", "5", "a:b", "1:2:3:4", "0:4", "4:3", "1:4:0", "-1:4", "1:", "1:99999999", "١:٢"]
    )
    def test_what_is_no_range(self, text: str) -> None:
        """Each is a usage error that says what was typed."""
        with pytest.raises(UsageError, match=r"--sweep-tokens .*(no range|no length)"):
            parse_lengths(text)


class TestPrompts:
    PROMPT = Prompt("p1", (9, 1, 2, 3), "four", fingerprint((9, 1, 2, 3)))

    def test_short_and_long_ones(self) -> None:
        """Shorter ones keep the first tokens; longer ones repeat the prompt's tokens from the second on."""
        made = {p.id: p.token_ids for p in swept([self.PROMPT], Lengths(1, 9, 4), None)}
        assert made == {"p1-t001": (9,), "p1-t005": (9, 1, 2, 3, 1), "p1-t009": (9, 1, 2, 3, 1, 2, 3, 1, 2)}

    def test_its_own_length_is_the_prompt_itself(self) -> None:
        """Ids, text and hash are the prompt's; another length has no text, since nobody wrote one."""
        four, five = swept([self.PROMPT], Lengths(4, 5), None)
        assert replace(four, id="p1") == self.PROMPT
        assert (five.text, five.sha256) == (None, fingerprint(five.token_ids))

    def test_one_token_repeats_itself(self) -> None:
        """There is no second token to go on with."""
        assert swept([replace(self.PROMPT, token_ids=(9,))], Lengths(3, 3), None)[0].token_ids == (9, 9, 9)

    def test_ids_sort_as_lengths_do(self) -> None:
        """Digits are as many as the longest needs, three at least."""
        ids = [p.id for p in swept([self.PROMPT], Lengths(1, 1000, 999), None)]
        assert ids == ["p1-t0001", "p1-t1000"]

    def test_the_models_context_is_the_limit(self) -> None:
        """A length that the model cannot take is a usage error before anything runs."""
        with pytest.raises(UsageError, match="the model takes 8 at most"):
            swept([self.PROMPT], Lengths(1, 9), 8)


def results(*told: tuple[int, str]) -> tuple[list[Result], list[PromptInfo]]:
    made = [a_result(status, "b", f"p1-t{n:03}") for n, status in told]
    return made, [PromptInfo(f"p1-t{n:03}", n, "") for n, _ in told]


class TestRanges:
    def test_verdicts_that_come_and_go_are_told_as_ranges(self) -> None:
        """A verdict may change more than once; a length without a result ends a range."""
        told = [(1, "agree"), (2, "overflow"), (3, "overflow"), (4, "agree"), (6, "agree")]
        (found,) = sweeps(*results(*told), Lengths(1, 6))
        layer = a_result("overflow").first_bad.layer  # type: ignore[union-attr]
        assert found.ranges == (
            SweepRange(1, 1, "agree", None), SweepRange(2, 3, "overflow", layer), SweepRange(4, 4, "agree", None),
            SweepRange(6, 6, "agree", None),
        )  # fmt: skip
        line = sweep_lines(replace(a_report(), sweeps=(found,)))
        assert line == [f"b: 1 token agree, 2 to 3 overflow at {layer}, 4 agree, 6 agree"]

    def test_only_the_ends_of_ranges_are_shown(self) -> None:
        """A sweep of a hundred lengths is a few rows on a terminal."""
        made, infos = results(*((n, "overflow" if n <= 50 else "agree") for n in range(1, 101)))
        report = replace(
            a_report(*made), results=tuple(made), prompts=tuple(infos), sweeps=sweeps(made, infos, Lengths(1, 100))
        )
        assert [r.prompt for r in at_the_changes(report).results] == ["p1-t001", "p1-t050", "p1-t051", "p1-t100"]


@pytest.mark.usefixtures("here")
class TestRun:
    def test_the_boundary_of_the_path_by_rows(self, shifted_model: Path, tmp_path: Path) -> None:
        """sim-gptq overflows up to 50 tokens and agrees from 51 on; one load each, and compare says the same again."""
        wanted = asked(
            shifted_model, "sim-gptq", (FIRST,), sweep=Lengths(49, 52), max_new_tokens=1, capture="stats"
        )  # fmt: skip
        report = run(wanted, tmp_path / "run")
        assert sweep_lines(report) == [
            "hf-fp32: 49 to 52 tokens agree", f"sim-gptq: 49 to 50 tokens overflow at {OVERFLOWS}, 51 to 52 agree",
        ]  # fmt: skip
        assert read_report(tmp_path / "run" / "report.json") == report
        again = compare_again(tmp_path / "run", None, None, allow_skip=False, say=lambda _: None)
        assert again.sweeps == report.sweeps
        record = RunRecord.from_json(RunDir(tmp_path / "run").run())
        assert record.sweep == Lengths(49, 52)
        assert not list((tmp_path / "run" / "captures" / "hf-fp32" / "p1-t052").glob("block-*"))
