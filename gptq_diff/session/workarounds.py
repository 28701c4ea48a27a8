"""Workarounds as further jobs of a load, and where what they gave is kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.capture.store import CaptureReader, read_json, write_json
from gptq_diff.compare.align import Captured
from gptq_diff.compare.judge_run import judge_captures
from gptq_diff.compare.results import BAD_KINDS, FAILURES
from gptq_diff.compare.tokens import collapse
from gptq_diff.diagnose.workarounds.other_backends import other_backends
from gptq_diff.diagnose.workarounds.padding import of_padded, padded, worth_padding
from gptq_diff.errors import CaptureError
from gptq_diff.jobs import Job
from gptq_diff.records import Judgement, Prompt, Result, Workaround
from gptq_diff.session.behind import GoOn, Work, at_once
from gptq_diff.session.decode import Decoder
from gptq_diff.session.loads import ROWS

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.launch import Outcome


@dataclass(frozen=True)
class _Tried:
    """One padded prompt at work."""

    job: Job
    prompt: Prompt
    pad: str


class Padding:
    """Padded prompts of one load: asked for once its captures are judged, judged when they have run.

    new_tokens: that the job generates. reference: whose tokens are the right ones. later: has them judged, when it
    suits; no engine waits for that.
    """

    def __init__(
        self, run: RunDir, prompts: Sequence[Prompt], new_tokens: int, reference: str, judge: Checkpoint,
        loaded: Checkpoint, later: Callable[[Work], None] = at_once,
    ) -> None:  # fmt: skip
        self._run = run
        self._later = later
        self._prompts = {p.id: p for p in prompts}
        self._new_tokens = new_tokens
        self._reference = reference
        self._judge = judge
        self._loaded = loaded
        self._decoder = Decoder(loaded.path)
        self._open: list[_Tried] = []

    def first(self, judged: Mapping[tuple[str, str], Sequence[Judgement]], kernels: Mapping[str, str]) -> list[Job]:
        """A job for every capture that broke on the fused path with a short prompt."""
        for (backend, prompt), judgements in judged.items():
            bad = next((j for j in judgements if j.kind in BAD_KINDS), None)
            known = self._prompts[prompt]
            if bad is None or not worth_padding(bad, known.tokens, ROWS):
                continue
            pad, said = self._pad(known)
            place = self._run.root / "workarounds" / backend / prompt
            shutil.rmtree(place, ignore_errors=True)
            job = Job(
                backend=backend, kernel=kernels[backend], prompt=f"{prompt}~padded",
                token_ids=padded(known.token_ids, pad, ROWS), max_new_tokens=self._new_tokens, forced=None,
                out=str((place / "padded").absolute()), forget=True,
            )  # fmt: skip
            self._open.append(_Tried(job, known, said))
        return [tried.job for tried in self._open]

    def collect(self, outcomes: Sequence[Outcome]) -> None:
        """Have those judged and stored that have run."""
        done = {(o.backend, key) for o in outcomes for key in (*o.finished, *o.followed)}
        for tried in list(self._open):
            if (tried.job.backend, tried.job.key) in done:
                self._open.remove(tried)
                self._later(partial(self._settle, tried))

    def _settle(self, tried: _Tried, go_on: GoOn) -> None:
        """Judge and store one; its tensors go."""
        store_workarounds(self._run, tried.job.backend, tried.prompt.id, [self._judged(tried, go_on)])
        shutil.rmtree(Path(tried.job.out).parent, ignore_errors=True)

    def _pad(self, prompt: Prompt) -> tuple[int, str]:
        """A line break where there is a tokenizer that has one as a single token, else the prompt's last token."""
        line_break = self._decoder.single_token("\n")
        return (prompt.token_ids[-1], "its last token") if line_break is None else (line_break, "a line break")

    def _judged(self, tried: _Tried, go_on: GoOn) -> Workaround:
        reader = CaptureReader(Path(tried.job.out))
        key = (tried.job.backend, tried.job.key)
        captures = {key: Captured(reader, None)}
        judgements = judge_captures(captures, self._judge, self._loaded, lambda *_: go_on())[key]
        right = self._run.reader(self._reference, tried.prompt.id).manifest
        collapsed, _ = collapse(reader.manifest, right)
        tokens = reader.manifest.tokens
        reader.close()
        return of_padded(
            tried.prompt.tokens, len(tried.job.token_ids), tried.pad,
            next((j for j in judgements if j.kind in BAD_KINDS), None),
            collapsed=collapsed, text=self._decoder.text(tokens), same=tokens == right.tokens,
        )  # fmt: skip


def workarounds_file(run: RunDir, backend: str, prompt: str) -> Path:
    """Where what was tried for one capture is kept."""
    return run.root / "diagnosed" / backend / f"{prompt}.workarounds.json"


def store_workarounds(run: RunDir, backend: str, prompt: str, found: Sequence[Workaround]) -> None:
    """Beside what is there already; one of the same name is replaced."""
    path = workarounds_file(run, backend, prompt)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {w.name for w in found}
    known = [w for w in read_workarounds(run, backend, prompt) if w.name not in names]
    write_json(path, [asdict(w) for w in (*known, *found)])


def read_workarounds(run: RunDir, backend: str, prompt: str) -> tuple[Workaround, ...]:
    """What was tried for one capture by jobs of its own."""
    path = workarounds_file(run, backend, prompt)
    if not path.exists():
        return ()
    try:
        return tuple(Workaround(**row) for row in read_json(path))
    except TypeError as e:
        raise CaptureError(f"{path} is damaged: {e}", "remove it") from e


def with_workarounds(results: Sequence[Result], run: RunDir, reference: str) -> list[Result]:
    """Failing results with what was tried: other backends of the run, then jobs of their own."""
    right = {r.prompt: r for r in results if r.backend == reference}
    found = []
    for result in results:
        if result.status in FAILURES and result.backend != reference:
            others = other_backends(result, results, right.get(result.prompt))
            tried = read_workarounds(run, result.backend, result.prompt)
            result = replace(result, workarounds=(*tried, *others))
        found.append(result)
    return found
