"""What renderers need of a run, redacted, in a directory of its own: they are shown that, and never the run itself."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from pathlib import Path

from gptq_diff.between_file import between_file, read_between, write_between
from gptq_diff.judged_file import read_judged, write_judged
from gptq_diff.records import Between, Report, RowMap
from gptq_diff.report.json_report import read_report, write_report
from gptq_diff.report.redacted import Redaction
from gptq_diff.report.redacted_words import layer_name
from gptq_diff.rows_file import read_rows, rows_file, write_rows
from gptq_diff.text import clean


def write_redacted(root: Path, to: Path, *, include_prompts: bool = False) -> Report:
    """report.json, judgements and (if asked for) prompts of the run at `root`, redacted, below the empty folder `to`.

    Figures of single rows come with the prompts alone: what a first layer does to a row is a fingerprint of its token.
    CaptureError where the run has no report yet, or a damaged file.
    """
    report = read_report(root / "report.json")
    names = Redaction.of(report, include_prompts=include_prompts)
    shared = names.report(report)
    write_report(shared, to / "report.json")
    for old, new in zip(report.results, shared.results):
        judged = read_judged(root / "judged" / old.backend / f"{old.prompt}.jsonl")
        if judged:
            write_judged(to / "judged" / new.backend / f"{new.prompt}.jsonl", map(names.judgement, judged))
        between = read_between(between_file(root, old.backend, old.prompt))
        if between is not None:
            kept = Between(tuple(map(names.judgement, between.judgements)), (), {})
            write_between(between_file(to, new.backend, new.prompt), kept)
        rows = read_rows(rows_file(root, old.backend, old.prompt)) if include_prompts else None
        if rows is not None:
            write_rows(rows_file(to, new.backend, new.prompt), _rows(rows))
    if include_prompts:
        _copy_prompts(root / "prompts.json", to / "prompts.json")
    return shared


def _rows(rows: RowMap) -> RowMap:
    """The same numbers, decoded and encoded again, so that nothing but numbers is in it."""
    size = 2 * len(rows.layers) * len(rows.bins)
    x, y, error = (b64encode(b64decode(t, validate=True)[:size]).decode() for t in (rows.x, rows.y, rows.error))
    return RowMap(tuple(map(layer_name, rows.layers)), rows.bins, x, y, error, rows.lost)


def _copy_prompts(source: Path, to: Path) -> None:
    if not source.exists():
        return
    rows = [
        {
            "id": clean(str(r["id"])), "token_ids": [int(i) for i in r["token_ids"]],
            "text": r["text"] and clean(r["text"]), "sha256": str(r["sha256"]),
        }
        for r in json.loads(source.read_text(encoding="utf-8"))
    ]  # fmt: skip
    to.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
