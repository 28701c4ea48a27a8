"""The answers that bug forms ask for, as lines of Markdown, from a redacted report."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gptq_diff.records import Report, Result
from gptq_diff.report import markdown as md
from gptq_diff.report.advice import worst_result
from gptq_diff.report.markdown_text import code, prose, within

if TYPE_CHECKING:
    from gptq_diff.bundle.repro import Repro

_MOST_IDS = 400
_PART = 5_000
"""Characters of one part."""
KNOWN = {
    "accumulator-overflow": (
        "vllm-project/vllm#10656", "vllm-project/vllm#14126", "vllm-project/vllm#14715", "vllm-project/vllm#3998",
    ),
}  # fmt: skip
"""Issues that report the same symptom, by cause."""
PATHS = {
    "exllama-fast": "the fused path of the exllama GPTQ kernel (`gptq_gemm` in vLLM, exllama_v2 in GPTQModel)",
    "exllama-reconstruct": "its reconstruct path: the weight is dequantised to float16, then a float16 GEMM",
    "marlin": "Marlin", "machete": "Machete", "exact": "no kernel but the exact product",
    "fp16": "torch.matmul in float16 with the dequantised weight",
}  # fmt: skip
"""What a path is, for somebody who knows the engine and not gptq-diff."""
_SIMULATES = {
    "sim-exllama": "vLLM's gptq_gemm on its fused path, whatever the number of rows",
    "sim-reconstruct": "vLLM's gptq_gemm on its reconstruct path, whatever the number of rows",
    "sim-gptq": "vLLM's gptq_gemm with the path that it takes for this number of rows",
}


def environment(r: Report) -> list[str]:
    """The machine, every engine's own versions, the checkpoint."""
    lines = within(md.environment_lines(r), _PART)
    if r.environment.get("gpu") is None:
        lines.append("- GPU: none was used")
    if any(x.backend in _SIMULATES for x in r.results) and not any("vllm" in x.versions for x in r.results):
        lines.append("- vLLM: not run here; its kernels were simulated")
    return [*lines, f"- model: {md.model_line(r.model)}", f"- gptq-diff: {code(r.gptq_diff)}"]


def hardware(r: Report) -> list[str]:
    """Processor, GPU, driver, and how much memory the run took."""
    env = r.environment
    lines = [
        f"- CPU: {prose(env.get('cpu') or 'not recorded')}",
        f"- GPU: {prose(env.get('gpu') or 'none was used')}, driver: {prose(env.get('cuda') or 'none')}",
    ]
    peaks = [x.peak_private_bytes for x in r.results if x.peak_private_bytes is not None]
    on_gpu = [x.peak_gpu_bytes for x in r.results if x.peak_gpu_bytes is not None]
    if peaks:
        lines.append(f"- RAM taken by the largest worker: {max(peaks) / 1e9:.1f} GB")
    if on_gpu:
        lines.append(f"- GPU memory taken: {max(on_gpu) / 1e9:.1f} GB")
    return [*lines, ""]


def what_happens(r: Report) -> list[str]:
    """The verdict, how large it was, and what was expected instead."""
    worst = worst_result(r)
    lines = [prose(r.verdict.summary, md.SENTENCE), ""]
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
    told = {x.backend: _SIMULATES[x.backend] for x in r.results if x.backend in _SIMULATES}
    ran = {path for x in r.results for names in x.kernel.values() for path in names.split(", ")}
    ran = {path.removesuffix(" (decode)") for path in ran}
    legend = [f"- {code(path)} is {what}" for path, what in PATHS.items() if path in ran]
    return ["`*` stands for every quantised linear.", "", *lines,
            *(f"- {code(name)} simulates {what}" for name, what in told.items()), *legend, ""]  # fmt: skip


def matrix(r: Report) -> list[str]:
    """Backends x prompts."""
    return [*within(md.matrix(r), _PART), ""]


def minimal(repro: Repro | None, why_not: str) -> list[str]:
    """repro.py, what it prints, and where that was seen."""
    if repro is None:
        return [f"There is none: {prose(why_not or 'it was not made', 600)}. The whole model shows it, see below.", ""]
    before, after = (" x ".join(map(str, shape)) for shape in (repro.captured, repro.shape))
    seen = ", ".join(f"{prose(k)} {code(v)}" for k, v in repro.seen_on.items())
    where = f"Seen on {seen}." if repro.live else "Predicted with a simulation of the kernel, not yet seen on a GPU."
    data = f" Its numbers lie in {code(repro.data)} beside it." if repro.data else ""
    fence = "`" * (max([2, *(len(run) for run in re.findall("`+", repro.text))]) + 1)
    inputs = (
        f"{repro.inputs} input{'' if repro.inputs == 1 else 's'} that {'is' if repro.inputs == 1 else 'are'} not zero"
    )
    return [
        f"The failing call of {before} (M x K x N), reduced to {after} with {inputs}. It needs torch and the engine, "
        f"no model, and exits with 1 where the defect is, 0 where it is not, 3 where it cannot run.{data} {where}", "",
        f"- failing call: the kernel gives {code(repro.failing[0])}, exact is {repro.failing[1]:.6g}",
        f"- nearest call that passes: the kernel gives {code(repro.passing[0])}, exact is {repro.passing[1]:.6g}", "",
        "<details open>", "<summary>repro.py</summary>", "", f"{fence}python", repro.text.rstrip(), fence, "",
        "</details>", "",
    ]  # fmt: skip


def whole_model(r: Report, token_ids: tuple[int, ...]) -> list[str]:
    """Commands that show it with the model, as far as it may be named."""
    m = r.model
    if m.path.startswith("gptq-diff "):
        get = [f"{m.path} --out model"]
    elif "/" in m.path:
        get = [f"hf download {m.path} --local-dir model"]
    else:
        get = ["# model: a private checkpoint, known to its owner by the fingerprint above"]
    backends = ",".join(dict.fromkeys(x.backend for x in r.results))
    length = next((p.tokens for p in r.prompts if p.id == r.verdict.prompt), None)
    tokens = "" if length is None else f" The failing prompt has {length} tokens; its ids' sha256 is in report.json."
    file = "prompts.json" if token_ids else "prompts.jsonl"
    lines = ["```sh", "pip install gptq-diff", *get]
    lines += [f"gptq-diff run --model model --prompt-file {file} --backends {backends}", "```", ""]
    if any(x.backend in _SIMULATES for x in r.results):
        lines += _with_vllm(length, token_ids)
    where = "lies in the bundle" if token_ids else 'holds a prompt a line, `{"prompt": "..."}`'
    said = f"Greedy decoding, one prompt at a time, no prefix cache, eager mode.{tokens} {file} {where}."
    return [said, "", *lines]


def _with_vllm(length: int | None, token_ids: tuple[int, ...]) -> list[str]:
    """The same without gptq-diff, for whoever has the engine."""
    short = "" if length is None else f" of {length} tokens"
    return [
        "The same in vLLM alone:", "", "```python", "from vllm import LLM, SamplingParams", "",
        'llm = LLM("model", quantization="gptq", dtype="float16", enforce_eager=True, enable_prefix_caching=False)',
        _prompt(token_ids) if token_ids else f"prompt = ...  # a prompt{short}",
        "print(llm.generate([prompt], SamplingParams(temperature=0, max_tokens=8))[0].outputs[0].token_ids)", "```", "",
    ]  # fmt: skip


def _prompt(token_ids: tuple[int, ...]) -> str:
    if len(token_ids) <= _MOST_IDS:
        return f'prompt = {{"prompt_token_ids": {list(token_ids)}}}'
    return 'prompt = {"prompt_token_ids": [...]}  # of this prompt, from prompts.json'


def transformers(r: Report) -> list[str]:
    """What the transformers backends gave with the same token ids; how they ran; what differs."""
    same = [x for x in r.results if x.engine == "transformers" and x.backend not in _SIMULATES]
    same = [x for x in same if x.quantization_error is None]
    if not same:
        return ["transformers was not run.", ""]
    lines = [
        "The same checkpoint and token ids in transformers' own model, each quantised linear as a plain matmul with "
        "the dequantised weight (in float32 for `hf-fp32`, in float16 for `hf-fp16`), by the command above:", "",
    ]  # fmt: skip
    for x in same[:20]:
        end = "" if x.first_bad is None else f" at {code(x.first_bad.layer)}"
        lines.append(f"- {code(x.backend)}, prompt {code(x.prompt)}: {prose(x.status)}{end}")
    good = all(x.status == "agree" for x in same)
    said = "so the checkpoint and the model's code are sound" if good else "so the fault is not the engine's alone"
    return [*lines, "", f"{'The error does not appear there' if good else 'An error appears there too'}, {said}.", ""]


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
        lines.insert(0, "No exception is raised and nothing is logged: the kernel returns wrong numbers in silence.")
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
