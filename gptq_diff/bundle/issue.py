"""ISSUE.md: the bug form of the project whose kernel breaks, every question answered from the redacted report."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptq_diff.bundle import issue_environment as machine
from gptq_diff.bundle import issue_parts as parts
from gptq_diff.bundle import issue_repro as again
from gptq_diff.bundle.repro import Repro
from gptq_diff.records import Report
from gptq_diff.report.advice import worst_result
from gptq_diff.report.markdown_text import code

VLLM, GPTQMODEL = "vLLM", "GPTQModel"
_PROJECT = {"vllm": VLLM, "gptqmodel": GPTQMODEL, "auto_gptq": GPTQMODEL}
_TITLE = {
    "exllama-fast": "the fused exllama kernel",
    "exllama-reconstruct": "exllama's reconstruct path",
    "marlin": "Marlin",
    "machete": "Machete",
}
_WHERE = {
    VLLM: "https://github.com/vllm-project/vllm/issues/new?template=400-bug-report.yml",
    GPTQMODEL: "https://github.com/ModelCloud/GPTQModel/issues/new?template=bug_report.md",
}


@dataclass(frozen=True)
class Material:
    """What an issue is written from; all of it redacted.

    repro: None with the reason in no_repro. rows: file -> (number of rows, why there is no exact answer).
    prompts: the bundle holds prompts and answers; token_ids: of the verdict's prompt then, else empty.
    """

    report: Report
    repro: Repro | None
    no_repro: str = ""
    rows: dict[str, tuple[int, str]] = field(default_factory=dict)
    prompts: bool = False
    token_ids: tuple[int, ...] = ()


def project_of(report: Report) -> str:
    """Whose bug form it is: by the engine that broke; simulated kernels are vLLM's."""
    worst = worst_result(report)
    return _PROJECT.get(worst.engine, VLLM) if worst is not None else VLLM


def title(report: Report) -> str:
    """A line for the issue's title, without names of this run."""
    worst = worst_result(report)
    bad = worst.first_bad if worst is not None else None
    if worst is None or bad is None:
        return f"GPTQ model: {report.verdict.status} with {report.verdict.backend or 'no backend'}"
    rows = f"{bad.rows} row{'' if bad.rows == 1 else 's'}"
    what = {"overflow": "infinite outputs", "nan": "NaN outputs"}.get(bad.kind, "wrong outputs")
    ends = ", the model then writes one token only" if worst.collapsed else ""
    m = report.model
    return f"GPTQ {m.bits} bit, group_size {m.group_size}: {what} of {_TITLE.get(bad.path, bad.path)} with {rows}{ends}"


def issue(m: Material) -> str:
    """The whole file."""
    project = project_of(m.report)
    form = _vllm_form if project == VLLM else _gptqmodel_form
    lines = [*_before_filing(m, project), *form(m)]
    return "\n".join(lines).rstrip() + "\n"


def _before_filing(m: Material, project: str) -> list[str]:
    """What a person still has to do; not part of the issue."""
    lines = [
        "> **For whoever files this** (delete this box before sending)", ">",
        f"> - Where: [{project}'s bug form]({_WHERE[project]}). Title: {code(_prefixed(project, title(m.report)))}",
        "> - Each heading of the third level below is a field of that form; attach this bundle, or its repro.py and "
        "report.html.",
    ]  # fmt: skip
    worst = worst_result(m.report)
    if m.report.verdict.status == "agree":
        lines.append(
            "> - **Nothing is wrong with what was compared**; some backends did not run, see below. Do not file it."
        )
    elif worst is None or worst.status == "incomplete":
        lines.append("> - **There is no verdict in this run**: mend what was skipped and run again before filing.")
    elif worst.backend.startswith("sim-") and not (m.repro and m.repro.live):
        lines.append(
            "> - **The fault was computed, not seen on a GPU**: this run simulated vLLM's kernel on a CPU. Run "
            "repro.py where vLLM and a GPU are (exit 1: the defect is there), and say so below, before you file it."
        )
    elif worst.engine == "transformers":
        lines.append("> - The fault shows without any engine's kernel: it is the checkpoint's, and for its publisher.")
    elif worst.engine == "auto_gptq":
        lines.append("> - auto_gptq is archived; GPTQModel is its successor and holds the same kernels.")
    private = "It holds prompts and answers, as was asked for (--include-prompts)." if m.prompts else (
        "It holds no prompt, answer, path, host or user name, and no log."
    )  # fmt: skip
    if m.rows:
        private += (
            " But **activations can reveal text**: rows/ holds captured rows of the bad linear. Make it again "
            "with --no-rows if the prompts are confidential."
        )
    if m.repro is not None:
        private += " repro.py holds a few numbers of the bad linear's input and weight."
    return [*lines, f"> - What is in the bundle: docs/bundle.md of gptq-diff. {private}", ""]


def _prefixed(project: str, text: str) -> str:
    return f"[Bug]: {text}" if project == VLLM else f"[BUG] {text}"


def _vllm_form(m: Material) -> list[str]:
    """The fields of vLLM's 400-bug-report.yml, in its order."""
    r = m.report
    return [
        "### Your current environment", "", "<details>",
        "<summary>In place of the output of <code>python collect_env.py</code></summary>", "",
        machine.COLLECTED, "", *machine.environment(r), "", "</details>", "",
        "### \N{BUG} Describe the bug", "", *parts.what_happens(r),
        "#### The kernel that really ran", "", *parts.kernels(r),
        "#### Backends and prompts", "", *parts.matrix(r),
        "#### Minimal example", "", *again.minimal(m.repro, m.no_repro),
        "#### With the whole model", "", *again.whole_model(r, m.token_ids),
        "#### The same on transformers", "", *again.transformers(r),
        "#### Why", "", *parts.cause(r),
        "#### What was tried", "", *parts.tried(r),
        "#### Error message and logs", "", *parts.logs(r),
        "#### Attached", "", *parts.attached(m.rows, m.repro is not None, prompts=m.prompts),
        "### Before submitting a new issue...", "", *parts.searched(r),
        "- [ ] Make sure you already searched for relevant issues, and asked the chatbot living at the bottom right "
        "corner of the documentation page, which can answer lots of frequently asked questions.",
    ]  # fmt: skip


def _gptqmodel_form(m: Material) -> list[str]:
    """The fields of GPTQModel's bug_report.md, in its order."""
    r = m.report
    return [
        "**Describe the bug**", "", *parts.what_happens(r), "The kernel that really ran:", "", *parts.kernels(r),
        "**Hardware details**", "", *machine.hardware(r),
        "**Software version**", "", *machine.software(r), "",
        "**To Reproduce**", "", *again.minimal(m.repro, m.no_repro), "With the whole model:", "",
        *again.whole_model(r, m.token_ids),
        "**Expected behavior**", "", *parts.expected(r), *again.transformers(r),
        "**Screenshots**", "", "report.html in the bundle draws the errors along the layers.", "",
        "**Additional context**", "", *parts.matrix(r), "Why:", "", *parts.cause(r), "What was tried:", "",
        *parts.tried(r), *parts.logs(r), *parts.searched(r), "Attached:", "",
        *parts.attached(m.rows, m.repro is not None, prompts=m.prompts),
    ]  # fmt: skip
