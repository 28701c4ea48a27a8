"""The run directory: where everything of one run lies, and who may write there."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from gptq_diff.capture.store import CaptureReader, read_json, write_json
from gptq_diff.errors import CannotJudge, UsageError
from gptq_diff.jobs import capture_key
from gptq_diff.records import Prompt

OURS = ("captures", "judged", "diagnosed", "experiments", "workarounds", "weights", "logs", "reduced")
FILES = ("prompts.json", "report.json", "report.md", "report.html", "run.json")


def _is_ours(root: Path) -> bool:
    """Whether the directory's run.json was written by this tool: other tools have a run.json and a logs/ too."""
    try:
        raw = read_json(root / "run.json")
    except CannotJudge:
        return False
    return isinstance(raw, dict) and "gptq_diff" in raw and "schema_version" in raw


class RunDir:
    """Paths below RUN; `create` claims a new one, `open_finished` reads one from any machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: BinaryIO | None = None

    @staticmethod
    def create(root: Path, *, overwrite: bool) -> RunDir:
        """Claim a directory that is empty or new; with `overwrite` also a finished run of ours."""
        run = RunDir(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            entries = [p for p in root.iterdir() if p.name != "lock"]
            if entries and not _is_ours(root):
                raise UsageError(
                    f"the output directory {root} is not empty and not a run of gptq-diff", "choose another --out"
                )
            run._claim()
            if entries and not overwrite:
                run.release()
                raise UsageError(
                    f"the output directory {root} already holds a run", "choose another --out, or --overwrite"
                )
            run._clear()
        except OSError as e:
            run.release()
            raise UsageError(
                f"the output directory {root} cannot be written: {e.strerror or e}", "choose another --out"
            ) from e
        return run

    @staticmethod
    def open_finished(root: Path) -> RunDir:
        """A run that has its run.json; exit 2 when there is none."""
        if not (root / "run.json").is_file():
            raise UsageError(
                f"{root} is not a run of gptq-diff: it has no run.json", "give the --out of a finished run"
            )
        return RunDir(root)

    def _claim(self) -> None:
        self._lock = (self.root / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise UsageError(
                f"the output directory {self.root} is in use by another run", "choose another --out"
            ) from None

    def release(self) -> None:
        """Let another run have the directory; the lock goes with this process in any case."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _clear(self) -> None:
        """Remove what runs write, and nothing else; run.json goes last, since it says that the rest is ours."""
        for name in OURS:
            place = self.root / name
            if place.is_symlink():
                place.unlink()
            elif place.exists():
                shutil.rmtree(place)
        for name in FILES:
            (self.root / name).unlink(missing_ok=True)

    def capture(self, backend: str, prompt: str, repeat: int = 1) -> Path:
        """Directory of one capture."""
        return self.root / "captures" / backend / capture_key(prompt, repeat)

    def reader(self, backend: str, prompt: str, repeat: int = 1) -> CaptureReader:
        """A finished capture; CaptureError when it is not whole."""
        return CaptureReader(self.capture(backend, prompt, repeat))

    def judged(self, backend: str, prompt: str) -> Path:
        """File of judgements, one JSON object a line."""
        return self.root / "judged" / backend / f"{prompt}.jsonl"

    def findings(self, backend: str, prompt: str) -> Path:
        """File of the diagnosis of one capture."""
        return self.root / "diagnosed" / backend / f"{prompt}.findings.json"

    def log(self, backend: str) -> Path:
        """What the worker printed."""
        return self.root / "logs" / f"{backend}.log"

    def write_run(self, values: dict[str, Any]) -> None:
        """run.json: what was asked, versions, state; written first and once more at the end."""
        write_json(self.root / "run.json", values)

    def run(self) -> dict[str, Any]:
        """run.json as written."""
        return read_json(self.root / "run.json")  # type: ignore[no-any-return]

    def write_prompts(self, prompts: tuple[Prompt, ...]) -> None:
        """prompts.json: ids, text, sha256."""
        rows = [{"id": p.id, "token_ids": list(p.token_ids), "text": p.text, "sha256": p.sha256} for p in prompts]
        write_json(self.root / "prompts.json", rows)

    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of this run."""
        rows = read_json(self.root / "prompts.json")
        try:
            return tuple(Prompt(r["id"], tuple(r["token_ids"]), r["text"], r["sha256"]) for r in rows)
        except (KeyError, TypeError) as e:
            raise CannotJudge(f"{self.root / 'prompts.json'} is damaged: {e}", "run the capture again") from e
