"""The options that several commands share, as types for their signatures: name, help and reading in one place."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Annotated

import typer

from gptq_diff.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE | re.ASCII)
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?", re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(value: str | int) -> int:
    """Bytes in a size such as `2GB`, `512MiB`, `1.5g` or `4096`; GB are 1000^3, GiB 1024^3. An integer is bytes."""
    text = str(value).strip()
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a size", "Write a number and a unit: 500MB, 2GB, 1.5GiB.")
    number, unit = match[1], match[2].lower()
    base = 1024 if unit.endswith("i") else 1000
    if unit == "i":
        raise UsageError(f"{text!r} is not a size", "Write a number and a unit: 500MB, 2GB, 1.5GiB.")
    return int(float(number) * base ** _POWERS[unit.removesuffix("i")])


def parse_device(value: str) -> str:
    """The device as torch spells it; `auto` stays, and so does nothing at all."""
    text = str(value).strip().lower()
    if text and _DEVICE.fullmatch(text) is None:
        raise UsageError(f"--device {value} is not a device", "Write cpu, cuda, cuda:N or auto.")
    return text


class CaptureMode(str, enum.Enum):
    """How much of every linear's input and output is kept."""

    STATS = "stats"
    FULL = "full"
    AUTO = "auto"


class ExperimentsMode(str, enum.Enum):
    """Which kernels are experimented on."""

    AUTO = "auto"
    OFF = "off"
    ALL = "all"


class SimulateMode(str, enum.Enum):
    """Which calls the simulators of the fast path simulate."""

    AUTO = "auto"
    ALL = "all"
    TARGETED = "targeted"


Model = Annotated[
    str,
    typer.Option("--model", metavar="DIR", help="GPTQ checkpoint: a directory, or a Hub id in the local cache."),
]
MovedModel = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="DIR", help="The checkpoint of the run, if it has moved.", show_default="as recorded"
    ),
]
ReferenceModel = Annotated[
    str | None,
    typer.Option(
        "--reference-model",
        metavar="DIR",
        help="Checkpoint that the reference and the judge read, where --model may be damaged.",
        show_default="--model",
    ),
]
Original = Annotated[
    str | None,
    typer.Option(
        "--original",
        metavar="DIR",
        help="The unquantised model: adds hf-original, which shows the error of quantisation itself.",
        show_default="none",
    ),
]
PromptFile = Annotated[
    str,
    typer.Option("--prompt-file", metavar="FILE", help="Prompts: .txt, .jsonl, .json, or - for standard input."),
]
Backends = Annotated[
    str | None,
    typer.Option(
        "--backends", metavar="A,B@PYTHON", help="What to compare; see gptq-diff backends.", show_default="all usable"
    ),
]
Reference = Annotated[
    str, typer.Option("--reference", metavar="NAME", help="The backend that the others are compared with.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="RUN", help="Run directory.", show_default="gptq-diff-runs/UTC-TIME-ID"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")]
Capture = Annotated[
    CaptureMode | None,
    typer.Option(
        "--capture",
        help="Tensors to keep: those of bad layers, all of them, or all within the budget.",
        show_default="auto, with --sweep-tokens stats",
    ),
]
CaptureBudget = Annotated[
    int,
    typer.Option("--capture-budget", metavar="SIZE", parser=parse_size, help="Bytes of tensors to keep, such as 2GB."),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        min=1,
        help="Tokens to generate; 1 is the prefill alone.",
        show_default="8, with --sweep-tokens 1",
    ),
]
SweepTokens = Annotated[
    str | None,
    typer.Option(
        "--sweep-tokens",
        metavar="A:B[:STEP]",
        help="Bring every prompt to A, A + STEP, ... B tokens, and say at which lengths the verdict changes.",
        show_default="prompts as they are",
    ),
]
Experiments = Annotated[
    ExperimentsMode,
    typer.Option(
        "--experiments",
        help="Run the first bad linear by itself on its live kernel, scaled, sliced, repeated, with 1 to 64 rows: for "
        "failing backends of other engines than the transformers one, for none, or for all backends, sound ones too.",
    ),
]
Workarounds = Annotated[
    ExperimentsMode,
    typer.Option(
        "--workarounds",
        help="Try what helps where a backend fails: a longer prompt in the same load and the run's other backends, "
        "nothing, or bfloat16 and a checkpoint with more headroom too, each in a load of its own.",
    ),
]
Simulate = Annotated[
    SimulateMode,
    typer.Option(
        "--simulate",
        help="The fast path of sim-exllama and sim-gptq: every linear, or those alone that a bound does not prove safe "
        "(tokens are approximate then); auto is targeted above 10 billion weights.",
    ),
]
Repeats = Annotated[
    int, typer.Option("--repeats", min=1, help="Run every prompt so often; from 2 on determinism is judged.")
]
PrefixCache = Annotated[
    bool,
    typer.Option(
        "--prefix-cache",
        help="Leave vLLM's prefix cache on: prompts in file order, each computed from where the cache ends.",
    ),
]
TeacherForce = Annotated[
    bool, typer.Option("--teacher-force", help="Feed every backend the reference's tokens while it decodes.")
]
System = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", help="A system message before every prompt."),
]
NoChatTemplate = Annotated[
    bool, typer.Option("--no-chat-template", help="Feed plain prompts as they are, not as a user's message.")
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch a Hub id that is not in the local cache.")]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        parser=parse_device,
        help="cpu, cuda, cuda:N, or auto: a GPU if there is one. vLLM always takes one, with cuda:N that one.",
        show_default="cpu for the hf- and sim- backends, auto for the others",
    ),
]
TensorParallelSize = Annotated[
    int,
    typer.Option(
        "--tensor-parallel-size", metavar="N", min=1, help="GPUs (on a CPU: processes) that vLLM shares a model among."
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=1, help="Time limit of each backend.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of every random number.")]
AllowSkip = Annotated[
    bool, typer.Option("--allow-skip", help="End with 0, not 3, where a backend could not run and the others agree.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every layer and every worker's log.")]
FullHash = Annotated[
    bool, typer.Option("--full-hash", help="Hash every byte of the checkpoint for its fingerprint, not a sample.")
]
