"""How to make it happen again, as bug forms ask: a minimal script, the whole model, the engine alone, transformers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gptq_diff.records import Report
from gptq_diff.report.markdown_text import code, prose
from gptq_diff.report.paths import SIMULATES
from gptq_diff.report.repeat import PROMPTS, commands

if TYPE_CHECKING:
    from gptq_diff.bundle.repro import Repro

_MOST_IDS = 400


def minimal(repro: Repro | None, why_not: str) -> list[str]:
    """repro.py, what it prints, and where that was seen."""
    if repro is None:
        return [f"There is none: {prose(why_not or 'it was not made', 600)}. The whole model shows it, see below.", ""]
    before, after = (" x ".join(map(str, shape)) for shape in (repro.captured, repro.shape))
    data = f" Its numbers lie in {code(repro.data)} beside it." if repro.data else ""
    fence = _fence(repro.text)
    inputs = (
        f"{repro.inputs} input{'' if repro.inputs == 1 else 's'} that {'is' if repro.inputs == 1 else 'are'} not zero"
    )
    return [
        f"The failing call of {before} (M x K x N), reduced to {after} with {inputs}. It needs torch and the engine, "
        "no model, and exits with 1 where the defect is, 0 where it is not, 3 where it cannot run."
        f"{data} {_seen(repro)}", "",
        "<details open>", "<summary>repro.py</summary>", "", f"{fence}python", repro.text.rstrip(), fence, "",
        "</details>", "", *_prints(repro),
    ]  # fmt: skip


def _seen(repro: Repro) -> str:
    if not repro.live:
        return "Predicted with a simulation of the kernel, not yet seen on a GPU."
    return f"Seen on {', '.join(f'{prose(k)} {code(v)}' for k, v in repro.seen_on.items())}."


def _prints(repro: Repro) -> list[str]:
    """What stands on the terminal, as it was seen or as the simulation predicts it, against what is right."""
    rows = ("passing", *repro.passing, "right"), ("failing", *repro.failing, "WRONG")
    shown = [f"{name}: exact {exact:.6g}, expected here {y}, saw {y}: {word}" for name, y, exact, word in rows]
    fence = _fence("\n".join(shown))
    return [f"`python repro.py` prints{'' if repro.live else ' (predicted)'}:", "", f"{fence}text", *shown, fence, "",
            f"Right would be {repro.failing[1]:.6g} in the last line, to within float16's rounding.", ""]  # fmt: skip


def whole_model(r: Report, token_ids: tuple[int, ...]) -> list[str]:
    """Commands that show it with the model, as far as it may be named."""
    length = next((p.tokens for p in r.prompts if p.id == r.verdict.prompt), None)
    tokens = "" if length is None else f" The failing prompt has {length} tokens; its ids' sha256 is in report.json."
    file = "prompts.json" if token_ids else PROMPTS
    where = "lies in the bundle" if token_ids else 'holds a prompt a line, `{"prompt": "..."}`'
    said = f"Greedy decoding, one prompt at a time, no prefix cache, eager mode.{tokens} {file} {where}."
    lines = [f"{said} With gptq-diff {prose(r.gptq_diff)}:", "", "```sh", *commands(r, prompts=file), "```", ""]
    return lines + (_with_vllm(length, token_ids) if _vllms(r) else [])


def _vllms(r: Report) -> bool:
    return any(x.backend in SIMULATES or x.engine == "vllm" for x in r.results)


def _with_vllm(length: int | None, token_ids: tuple[int, ...]) -> list[str]:
    """The same without gptq-diff, for whoever has the engine."""
    of = "" if length is None else f" of {length} tokens"
    private = (
        f"prompt = ...  # the failing one{of} is not shown; `gptq-diff bundle --include-prompts` would give its ids"
    )
    return [
        "The same in vLLM alone:", "", "```python", "from vllm import LLM, SamplingParams", "",
        'llm = LLM("model", quantization="gptq", dtype="float16", enforce_eager=True, enable_prefix_caching=False)',
        _prompt(token_ids) if token_ids else private,
        "print(llm.generate([prompt], SamplingParams(temperature=0, max_tokens=8))[0].outputs[0].token_ids)", "```", "",
    ]  # fmt: skip


def _prompt(token_ids: tuple[int, ...]) -> str:
    if len(token_ids) <= _MOST_IDS:
        return f'prompt = {{"prompt_token_ids": {list(token_ids)}}}'
    return 'prompt = {"prompt_token_ids": [...]}  # of this prompt, from prompts.json'


def transformers(r: Report) -> list[str]:
    """What the transformers backends gave with the same token ids; how they ran; what differs."""
    same = [x for x in r.results if x.engine == "transformers" and x.backend not in SIMULATES]
    same = [x for x in same if x.quantization_error is None]
    if not same:
        return ["transformers was not run.", ""]
    lines = [
        "The same checkpoint and token ids in transformers' own model, each quantised linear as a plain matmul with "
        "the dequantised weight (in float32 for `hf-fp32`, in float16 for `hf-fp16`), by the command above. The "
        "engine's kernel for quantised linears is all that differs:", "",
    ]  # fmt: skip
    for x in same[:20]:
        end = "" if x.first_bad is None else f" at {code(x.first_bad.layer)}"
        lines.append(f"- {code(x.backend)}, prompt {code(x.prompt)}: {prose(x.status)}{end}")
    good = all(x.status == "agree" for x in same)
    said = "so the checkpoint and the model's code are sound" if good else "so the fault is not the engine's alone"
    return [*lines, "", f"{'The error does not appear there' if good else 'An error appears there too'}, {said}.", ""]


def _fence(text: str) -> str:
    """One backtick more than any run in it."""
    return "`" * (max([2, *(len(run) for run in re.findall("`+", text))]) + 1)
