"""The answers that bug forms ask for, as lines of Markdown, from a redacted report."""

from __future__ import annotations

from gptq_diff.records import Report, Result
from gptq_diff.report import markdown as md
from gptq_diff.report.advice import worst_result
from gptq_diff.report.markdown_text import code, prose, within
from gptq_diff.report.paths import PATHS, SIMULATES

_PART = 5_000
"""Characters of one part."""
KNOWN = {
    "accumulator-overflow": (
        "vllm-project/vllm#10656", "vllm-project/vllm#14126", "vllm-project/vllm#14715", "vllm-project/vllm#3998",
    ),
}  # fmt: skip
"""Issues that report the same symptom, by cause."""
_KINDS = {"overflow": "infinite outputs", "nan": "NaN outputs", "diverged": "outputs beyond what rounding explains"}


def in_short(r: Report) -> list[str]:
    """What is wrong, for somebody who has never heard of gptq-diff, in three sentences."""
    worst = worst_result(r)
    bad = worst.first_bad if worst is not None else None
    if worst is None or bad is None:
        return []
    m = r.model
    rows = f"{bad.rows} row{'' if bad.rows == 1 else 's'}"
    seen = " This was computed with a simulation of that kernel." if worst.backend in SIMULATES else ""
    ends = f" The model then writes token {worst.collapse_token} only." if worst.collapsed else ""
    return [
        f"With a GPTQ checkpoint of {m.bits} bit (group_size {m.group_size}), {PATHS.get(bad.path, prose(bad.path))} "
        f"gives {_KINDS.get(bad.kind, prose(bad.kind))} for a call of {rows}, although the exact answer is finite and "
        f"at most {bad.exact_absmax:,.6g}.{ends}{seen} Found with gptq-diff, which holds the output of every quantised "
        "linear against the exact product of its own input with the dequantised weight.", "",
    ]  # fmt: skip


def what_happens(r: Report) -> list[str]:
    """The verdict, how large it was, and what was expected instead."""
    worst = worst_result(r)
    lines = [*in_short(r), prose(r.verdict.summary, md.SENTENCE), ""]
    bad = worst.first_bad if worst is not None else None
    if bad is not None:
        first = (
            "" if bad.first_index is None else f", the first at row {bad.first_index[0]}, column {bad.first_index[1]}"
        )
        lines += [
            f"The call has {bad.rows} rows; its input's largest magnitude is {bad.input_absmax:,.6g} and that of the "
            f"exact answer {bad.exact_absmax:,.6g}. {bad.nonfinite} of {bad.elements} outputs are infinite or "
            f"NaN{first}. "
            "The exact answer is the same input times the weight that is dequantised from the checkpoint, summed in "
            "float32 or better.", "",
        ]  # fmt: skip
    return [*lines, *expected(r)]


def expected(r: Report) -> list[str]:
    """What should have come out."""
    return ["Expected: finite outputs within the rounding of float16, as these give:", "", *_agreeing(r)]


def _agreeing(r: Report) -> list[str]:
    fine = [x for x in r.results if x.prompt == r.verdict.prompt and x.status == "agree"]
    fine = [x for x in fine if x.quantization_error is None]
    lines = [f"- {code(x.backend)} ({_ran(x)}): every one of {x.layers.compared} linears agrees" for x in fine[:12]]
    return [*(lines or ["- no backend of this run agrees on that prompt"]), ""]


def _ran(x: Result) -> str:
    return f"{prose(x.engine)}, kernel {code('; '.join(dict.fromkeys(x.kernel.values())), 120)}"


def kernels(r: Report) -> list[str]:
    """Which kernel each backend really used, read off the kernel objects, and what a simulator stands for."""
    lines = within(md.kernel_lines(r), _PART)
    told = {x.backend: SIMULATES[x.backend] for x in r.results if x.backend in SIMULATES}
    ran = {path for x in r.results for names in x.kernel.values() for path in names.split(", ")}
    ran = {path.removesuffix(" (decode)") for path in ran}
    legend = [f"- {code(path)} is {what}" for path, what in PATHS.items() if path in ran]
    return ["`*` stands for every quantised linear.", "", *lines,
            *(f"- {code(name)} simulates {what}" for name, what in told.items()), *legend, ""]  # fmt: skip


def matrix(r: Report) -> list[str]:
    """Backends x prompts."""
    return [*within(md.matrix(r), _PART), ""]


def cause(r: Report) -> list[str]:
    """Findings with their evidence, or that none was found."""
    lines = within(md.cause_lines(r.results), _PART)
    return [*(lines or ["- no cause was found: what is known is above"]), ""]


def tried(r: Report) -> list[str]:
    """Workarounds that were run, experiments, headroom."""
    lines = within(md.tried_lines(r.results), _PART)
    return [*(lines or ["- nothing: the run had no other backend to try, or workarounds were off"]), ""]


def logs(r: Report) -> list[str]:
    """There is no traceback where numbers are wrong; what failed by an error is named."""
    lines = [f"- {code(s.backend)} did not finish: {prose(s.reason, 300)}" for s in r.skipped_backends]
    if worst_result(r) is not None:
        lines.insert(
            0,
            "No exception is raised and nothing is logged: the kernel returns wrong numbers in silence. So there is no "
            "traceback to show, and VLLM_LOGGING_LEVEL=DEBUG was not set.",
        )
    return [*(lines or ["Nothing ran to an end, and no reason is known."]), ""]


def searched(r: Report) -> list[str]:
    """Issues with the same symptom, where the cause is a known one."""
    causes = dict.fromkeys(f.cause for x in r.results for f in x.findings)
    found = [issue for c in causes for issue in KNOWN.get(c, ())]
    if not found:
        return ["Related issues: none is known to gptq-diff for this cause.", ""]
    return [f"Related issues, with the same symptom: {', '.join(found)}.", ""]


def attached(rows: dict[str, tuple[int, str]], repro: bool, *, prompts: bool) -> list[str]:
    """What lies in the bundle."""
    lines = ["- report.html, report.md, report.json: the whole run", "- environment.json: versions and hardware"]
    lines += ["- repro.py: the minimal example above"] if repro else []
    for name, (count, note) in sorted(rows.items()):
        exact = "without the exact answer: " + prose(note) if note else "with the exact answer"
        lines.append(f"- {code(name)}: {count} captured row{'' if count == 1 else 's'} x and y, {exact}")
    lines.append(
        "- prompts.json: the prompts" if prompts else "- the prompts are not in it: lengths and hashes of ids are"
    )
    return [*lines, ""]
