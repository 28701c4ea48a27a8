"""The report as Markdown that fits into an issue's comment: the verdict first, long parts folded away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gptq_diff.records import Finding, Judgement, ModelInfo, Report, Result, Workaround
from gptq_diff.report.advice import worst_result
from gptq_diff.report.cleaned import cleaned
from gptq_diff.report.experiments import experiment_lines
from gptq_diff.report.headroom import headroom_lines
from gptq_diff.report.markdown_text import cell, code, details, prose, table, within
from gptq_diff.report.paths import about_backend, about_path
from gptq_diff.report.quantisation import quantisation_line
from gptq_diff.report.repeat import PROMPTS, commands, prompt_line
from gptq_diff.report.sweeps import at_the_changes, sweep_lines
from gptq_diff.text import one_line

LIMIT = 65_536
"""Characters of a comment on GitHub; the whole report stays below."""
MATRIX, WRITTEN, CAUSES, TRIED, LAYERS, OTHER = 12_000, 5_000, 8_500, 6_000, 4_000, 3_000
"""Characters of each part: with six parts of the last kind they sum up to less than the limit."""
NEIGHBOURS = 4
"""Linears shown before and after the first bad one."""
TEXT = 120
"""Characters shown of what a backend wrote."""
SENTENCE = 600
"""Characters of the verdict at most; escaped they may be eight times as many."""
NAME = 160
"""Characters shown of a name that comes from a checkpoint or a user."""


def markdown(report: Report, judged: Mapping[tuple[str, str], Sequence[Judgement]]) -> str:
    """The whole report; judged: judgements by (backend, prompt), as far as they are stored."""
    report = at_the_changes(cleaned(report, one_line))
    worst = worst_result(report)
    lines = [f"### gptq-diff: {report.verdict.status}", "", f"**{prose(report.verdict.summary, SENTENCE)}**", ""]
    if worst is not None:
        lines += [prose(f"{about_path(worst)} {about_backend(report, worst)}".strip(), SENTENCE), ""]
    lines += agreeing(report)
    lines += model_lines(report)
    lines += ["", *within(matrix(report), MATRIX), ""]
    lines += [*within([f"- {prose(line, 1000)}" for line in sweep_lines(report)], OTHER), ""] if report.sweeps else []
    lines += part("#### Cause", within(cause_lines(report.results), CAUSES))
    lines += part("#### What was tried", within(tried_lines(report.results), TRIED))
    lines += part("#### Left out", within(left_out_lines(report), OTHER))
    if worst is not None and worst.first_bad is not None:
        around = layer_lines(worst, judged.get((worst.backend, worst.prompt), ()))
        lines += details("Linears around the first bad one", within(around, LAYERS))
    lines += details("What each backend wrote", within(written_lines(report), WRITTEN))
    lines += details("Kernels that ran", within(kernel_lines(report), OTHER))
    lines += details("Headroom and experiments", within(_measured(report), OTHER))
    lines += details("Environment", within(environment_lines(report), OTHER))
    lines += details("To see it again", within(_again(report), OTHER))
    lines += [f"<sub>gptq-diff {prose(report.gptq_diff)}, {prose(report.created)}</sub>"]
    return "\n".join(lines) + "\n"


def part(head: str, lines: Sequence[str]) -> list[str]:
    """A headed part; nothing for no lines."""
    return [head, "", *lines, ""] if lines else []


def _lines(said: Sequence[str]) -> list[str]:
    """Lines of the console as a list, those set in below the others."""
    return [f"{'  ' if line.startswith('  ') else ''}- {prose(line, 600)}" for line in said]


def agreeing(report: Report) -> list[str]:
    """Who agrees on the verdict's prompt."""
    same = (r for r in report.results if r.prompt == report.verdict.prompt and r.status == "agree")
    fine = [code(r.backend, NAME) for r in same if r.quantization_error is None]
    if not fine:
        return []
    named = ", ".join(fine[:12]) + (f" and {len(fine) - 12} more" if len(fine) > 12 else "")
    agree = "agree" if len(fine) > 1 else "agrees"
    return [f"On the same prompt {named} {agree} with the exact answer on every linear judged.", ""]


def model_lines(report: Report) -> list[str]:
    """What was run, a checkpoint a line."""
    lines = [f"Model: {model_line(report.model)}"]
    if report.reference_model is not None:
        lines.append(f"Reference model: {model_line(report.reference_model)}")
    if report.original_model is not None:
        lines.append(f"Unquantised model: {code(report.original_model.path, NAME)}")
    return [f"{line}  " for line in lines]


def model_line(model: ModelInfo) -> str:
    """Name, shape, fingerprint."""
    signs = f"{model.bits} bit, group_size {model.group_size}, sym {model.sym}, desc_act {model.desc_act}"
    return (
        f"{code(model.path, NAME)}, {code(model.architecture, NAME)}, {signs}, {code(model.format)}, "
        f"{model.quantized_linears} quantised linears, fingerprint {code(model.fingerprint[:16])}"
    )


def matrix(report: Report) -> list[str]:
    """Prompts x backends; prompts at which something fails come first where not all fit."""
    backends = list(dict.fromkeys(r.backend for r in report.results))
    found = {(r.backend, r.prompt): r for r in report.results}
    tokens = {p.id: p.tokens for p in report.prompts}
    prompts = list(dict.fromkeys(r.prompt for r in report.results))
    if len(prompts) > 40:
        prompts.sort(key=lambda p: all(found[b, p].status == "agree" for b in backends if (b, p) in found))
    if not prompts:
        return ["No backend finished a prompt."]
    head = ["prompt (tokens)", *(cell(b, 60) + ("\\*" if b == report.reference else "") for b in backends)]
    rows = [[f"{cell(p, 60)} ({tokens.get(p, 0)})", *(_status(found.get((b, p))) for b in backends)] for p in prompts]
    return [*table(head, rows), "", "\\* the reference"]


def _status(result: Result | None) -> str:
    if result is None:
        return "did not finish"
    if result.quantization_error is not None:
        return "not judged"
    bad = result.first_bad
    said = result.status + (", collapsed" if result.collapsed and result.status != "collapsed" else "")
    said += f" ({result.cached_rows} rows cached)" if result.cached_rows else ""
    if bad is None:
        return said
    step = f", step {bad.step}" if bad.step else ""
    return f"**{said}** at {cell(bad.layer.removeprefix('model.layers.'), 80)}{step}"


def cause_lines(results: Sequence[Result]) -> list[str]:
    """Causes with their evidence, once for all results that have the very same."""
    of: dict[Finding, list[str]] = {}
    for result in results:
        for finding in result.findings:
            of.setdefault(finding, []).append(f"{result.backend}, {result.prompt}")
    lines = []
    for finding, who in of.items():
        where = f" at {code(finding.layer, NAME)}" if finding.layer else ""
        sure = f" (confidence {finding.confidence:.2g})"
        names = "; ".join(who[:4]) + (f" and {len(who) - 4} more" if len(who) > 4 else "")
        lines.append(f"- **{prose(finding.cause)}**{where}{sure}: {prose(names, 400)}")
        lines += [f"  - {prose(evidence, 1200)}" for evidence in finding.evidence]
    return lines


def tried_lines(results: Sequence[Result]) -> list[str]:
    """Workarounds, what works first; once for results that say the same."""
    said: dict[tuple[Workaround, ...], list[Result]] = {}
    for result in (r for r in results if r.workarounds):
        said.setdefault(result.workarounds, []).append(result)
    lines = []
    for workarounds, of in said.items():
        named = "; ".join(f"{code(r.backend, NAME)}, {code(r.prompt, NAME)}" for r in of[:4])
        lines.append(f"- {named}{f' and {len(of) - 4} more' if len(of) > 4 else ''}")
        for w in sorted(workarounds, key=lambda w: (w.works is not True, w.works is None)):
            word = {True: "**works**", False: "no help", None: "not tried"}[w.works]
            lines.append(f"  - {word}: {prose(w.name, NAME)}: {prose(w.detail, 400)}")
    return lines


def left_out_lines(report: Report) -> list[str]:
    """Skipped backends with the reason, linears that were not compared, tensors that were dropped."""
    lines = [f"- {code(s.backend, NAME)} was skipped: {prose(s.reason, 600)}" for s in report.skipped_backends]
    reasons: dict[tuple[str, str], int] = {}
    for r in (r for r in report.results if r.quantization_error is None):
        for layer in r.layers.skipped:
            key = (r.backend, layer.reason)
            reasons[key] = max(reasons.get(key, 0), sum(s.reason == layer.reason for s in r.layers.skipped))
    lines += [f"- {code(b, NAME)}: {n} linears not compared: {prose(why, 300)}" for (b, why), n in reasons.items()]
    return [*lines, *(f"- {prose(line, 600)}" for line in report.left_out)]


def layer_lines(result: Result, judgements: Sequence[Judgement]) -> list[str]:
    """The linears around the first bad one, in order of execution."""
    bad = result.first_bad
    assert bad is not None
    near = [j for j in judgements if j.step == bad.step and abs(j.index - bad.index) <= NEIGHBOURS]
    if not near:
        return []
    head = ("linear", "largest input", "exact y", "own error", "explained", "inherited", "")
    rows = [
        [
            cell(j.stored, 100), f"{j.input_absmax:.5g}", f"{j.exact_absmax:.5g}", number(j.local_l2_rel),
            number(j.noise_floor), number(j.inherited_l2_rel), _note(j),
        ]
        for j in near
    ]  # fmt: skip
    where = (
        f"{code(result.backend, NAME)}, prompt {code(result.prompt, NAME)}, step {bad.step}; errors are relative l2."
    )
    return [where, "", *table(head, rows)]


def _note(j: Judgement) -> str:
    if j.kind == "ok":
        return f"{j.inherited_rows} of {j.rows} rows lost" if j.inherited_rows else ""
    if j.kind == "inherited":
        return "input lost"
    kind = prose(j.kind)
    return f"**{kind}**: {j.nonfinite} inf/NaN" if j.nonfinite else f"**{kind}**"


def number(value: float | None) -> str:
    """A relative error, or a dash."""
    return "-" if value is None else f"{value:.1e}"


def written_lines(report: Report) -> list[str]:
    """What each backend wrote, a line a result."""
    lines = []
    for r in report.results:
        said = r.text if r.text is not None else " ".join(map(str, r.tokens))
        told = code(said, TEXT) if said else _unshown(r)
        if r.tokens_approximate:
            told += " (approximate: most linears were proved safe and not simulated)"
        lines.append(f"- {code(r.backend, NAME)}, {code(r.prompt, NAME)}: {told}")
    return lines


def _unshown(r: Result) -> str:
    """What may be said of an answer that is not in the report."""
    if r.collapsed:
        return f"(not shown: it collapses to token {r.collapse_token})"
    same = r.first_different_token
    return "(not shown)" if same is None else f"(not shown: its token {same + 1} is the first unlike the reference's)"


def kernel_lines(report: Report) -> list[str]:
    """The kernels that really ran: once for prompts of a backend that had the same."""
    lines = []
    for backend in dict.fromkeys(r.backend for r in report.results):
        of: dict[tuple[tuple[str, str], ...], list[Result]] = {}
        for r in (r for r in report.results if r.backend == backend):
            of.setdefault(tuple(r.kernel.items()), []).append(r)
        for kernels, results in of.items():
            named = ", ".join(f"{code(glob, NAME)}: {code(name, NAME)}" for glob, name in kernels[:6])
            more = f" and {len(kernels) - 6} more" if len(kernels) > 6 else ""
            on = "" if len(of) == 1 else f" ({code(results[0].prompt, NAME)}{_others(results)})"
            lines.append(f"- {code(backend, NAME)}{on}, engine {code(results[0].engine, NAME)}: {named}{more}")
    return lines


def _others(results: Sequence[Result]) -> str:
    return f" and {len(results) - 1} more" if len(results) > 1 else ""


def _again(report: Report) -> list[str]:
    told = f"{PROMPTS} holds a prompt a line"
    shown = prompt_line(report)
    return [
        *(f"- {code(line, 1500)}" for line in commands(report)),
        f"- {prose(f'{told}; there were {shown}' if shown else told, 1500)}",
    ]


def _measured(report: Report) -> list[str]:
    quantised = [line for r in report.results if (line := quantisation_line(r)) is not None]
    return _lines([*headroom_lines(report), *experiment_lines(report), *quantised])


def environment_lines(report: Report) -> list[str]:
    """The machine, then every engine's own versions."""
    lines = [f"- {prose(name, 60)}: {code(value, NAME)}" for name, value in report.environment.items() if value]
    of: dict[tuple[tuple[str, str], ...], dict[str, None]] = {}
    for r in report.results:
        of.setdefault(tuple(r.versions.items()), {})[r.backend] = None
    for versions, backends in of.items():
        named = ", ".join(f"{prose(name, 60)} {code(value, 60)}" for name, value in versions)
        lines.append(f"- {', '.join(code(b, NAME) for b in backends)}: {named}")
    return lines
