"""The machine and its packages, question by question as bug forms ask; what was not recorded is said to be so."""

from __future__ import annotations

from gptq_diff.records import Report
from gptq_diff.report import markdown as md
from gptq_diff.report.markdown_text import code, prose, within
from gptq_diff.report.paths import MODELLED, SIMULATES

_PART = 5_000
"""Characters of one part."""
COLLECTED = (
    "gptq-diff recorded this while it ran. `collect_env.py` itself was not run: its output lists paths and environment "
    "variables, which a bundle never holds."
)


def environment(r: Report) -> list[str]:
    """The machine, every engine's own versions, the checkpoint."""
    lines = within(md.environment_lines(r), _PART)
    if r.environment.get("gpu") is None:
        lines.append("- GPU: none was used")
    if any(x.backend in SIMULATES for x in r.results) and not any("vllm" in x.versions for x in r.results):
        lines.append(f"- vLLM: not run here; its kernels were simulated, with the arithmetic of {MODELLED}")
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
    lines.append(
        f"- RAM: taken by the largest worker {max(peaks) / 1e9:.1f} GB" if peaks else "- RAM: not recorded"
    )  # fmt: skip
    if on_gpu:
        lines.append(f"- GPU memory taken: {max(on_gpu) / 1e9:.1f} GB")
    return [*lines, ""]


def software(r: Report) -> list[str]:
    """GPTQModel's form asks for the system, `nvidia-smi` and `pip show` of five packages."""
    asked = ("torch", "gptqmodel", "transformers", "accelerate", "triton")
    known = {name: v for x in r.results for name, v in x.versions.items()}
    known |= {name: v for name, v in r.environment.items() if v}
    shown = [f"{name} {code(known[name]) if name in known else '(not recorded)'}" for name in asked]
    smi = "no GPU was used"
    if r.environment.get("gpu"):
        smi = "its GPU and driver stand above; the rest was not recorded"
    system = prose(r.environment.get("platform") or "not recorded")
    return [
        f"Operating system: {system} (its release was not recorded)", "",
        f"`nvidia-smi`: {smi}.", "", f"`pip show`: {', '.join(shown)}.", "", "All that was recorded:", "",
        *environment(r),
    ]  # fmt: skip
