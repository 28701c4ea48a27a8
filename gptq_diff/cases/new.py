"""A case written from a finished run: what happened becomes what is expected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.cases.expectations import seen_in
from gptq_diff.cases.read import FILE
from gptq_diff.cases.table import NAME
from gptq_diff.errors import CannotJudge, UsageError
from gptq_diff.models.config_files import BUILD_KEY
from gptq_diff.models.options import GainShift
from gptq_diff.records import ORIGINAL, Prompt, Report, Seen
from gptq_diff.report.json_report import read_report
from gptq_diff.session.asked import RunRecord
from gptq_diff.text import one_line

MOST_TEXT = 100
"""Characters of a prompt's text that a comment shows."""


def new_case(root: Path, name: str, out: Path) -> Path:
    """Write `out`/case.toml from the run at `root`; UsageError where there is one already, or no run."""
    if NAME.fullmatch(name) is None:
        raise UsageError(f"{name!r} cannot name a case", "letters, digits, dots, underscores and hyphens only")
    run = RunDir.open_finished(root)
    record = RunRecord.from_json(run.run())
    report = read_report(root / "report.json")
    if record.state != "finished" or not report.results:
        raise CannotJudge(f"the run {root} has not finished: there is nothing to expect of it", "run it again")
    file = out / FILE
    if file.exists():
        raise UsageError(f"{file} exists", "choose another --name or --out")
    text = case_text(name, record, report, run.prompts())
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def case_text(name: str, record: RunRecord, report: Report, prompts: tuple[Prompt, ...]) -> str:
    """The case file, as a string."""
    seen = seen_in(report)
    kernels = {b.name: b.kernel for b in record.backends}
    ran = [b for b in dict.fromkeys(s.backend for s in seen) if b != record.reference and kernels.get(b) != ORIGINAL]
    steps = max(result.steps for result in report.results)
    lines = [
        f"# Written by gptq-diff {record.gptq_diff} from a run of {record.created}.",
        f"name = {quoted(name)}", f"description = {quoted(report.verdict.summary)}", "", "[model]",
        *_model(record), "",
    ]  # fmt: skip
    told = {s.prompt for s in seen}
    for prompt in (p for p in prompts if p.id in told):
        said = f"  # {one_line(prompt.text, MOST_TEXT)}" if prompt.text else ""
        lines += ["[[prompt]]", f"id = {quoted(prompt.id)}{said}", f"token_ids = {list(prompt.token_ids)}", ""]
    lines += [
        "[run]", f"backends = {json.dumps(ran or [record.reference])}", f"reference = {quoted(record.reference)}",
        f"max_new_tokens = {steps}",
    ]  # fmt: skip
    if record.repeats > 1:
        lines.append(f"repeats = {record.repeats}")
    if record.teacher_force:
        lines.append("teacher_force = true")
    if record.prefix_cache:
        lines.append("prefix_cache = true")
    for one in seen:
        lines += ["", *_expect(one)]
    return "\n".join(lines) + "\n"


def _model(record: RunRecord) -> list[str]:
    """How it is built, where `model build` made it; else where it lies."""
    if record.reference_model is not None:
        return [f"path = {quoted(record.model.path)}", f"reference_path = {quoted(record.reference_model.path)}"]
    build = _build_record(Path(record.model.path))
    if build is None:
        return [f"path = {quoted(record.model.path)}"]
    options = dict(build["options"])
    shift = options.pop("gain_shift", None)
    lines = [f"build = {quoted(build['build'])}"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    if shift is not None:
        parsed = GainShift.parse(shift)
        lines += ["", "[model.gain_shift]", f"block = {parsed.block}", f"group = {parsed.group}",
                  f"gain = {parsed.gain:g}"]  # fmt: skip
    return lines


def _build_record(model: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads((model / "config.json").read_text(encoding="utf-8")).get(BUILD_KEY)
    except (OSError, ValueError, AttributeError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("build"), str) and isinstance(found.get("options"), dict)
    return found if whole else None


def _expect(seen: Seen) -> list[str]:
    lines = ["[[expect]]", f"backend = {quoted(seen.backend)}", f"prompt = {quoted(seen.prompt)}",
             f"status = {quoted(seen.status)}"]  # fmt: skip
    if seen.layer is not None and seen.status != "agree":
        lines.append(f"layer = {quoted(seen.layer)}")
    if seen.cause is not None:
        lines.append(f"cause = {quoted(seen.cause)}")
    if seen.collapsed:
        lines.append("collapsed = true")
    return lines


def quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are TOML's too where the text has no control characters."""
    return json.dumps(one_line(text), ensure_ascii=False)
