"""25 secrets of different kinds go into a run; none is in any file of its bundle, in whatever layer of packing."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from gptq_diff.bundle import make as making
from gptq_diff.bundle.make import Options, make_bundle
from gptq_diff.judged_file import read_judged, write_judged
from gptq_diff.records import (
    Experiment,
    Finding,
    Report,
    RowRange,
    SkippedBackend,
    SkippedLayer,
    Sweep,
    SweepRange,
    Workaround,
)
from gptq_diff.report import redacted, redacted_run
from gptq_diff.report.json_report import read_report, write_report
from tests.report.html.test_page import data_of
from tests.session.in_process import asked, run

SECRETS = {
    "a token in the environment": "hf_WqZrTyUiOpLkJhGfDsAaZxCvBnMm",
    "an API key in the environment": "sk-proj-9fJ2kLmQx7ZtRvWb",
    "a home directory in the path of the model": "ottilie.brandauer",
    "a project in the path of the model": "falkenhorst-merger",
    "the path of the run": "quartal4-vertraulich",
    "the path of the prompt file": "kundenliste-nordwind",
    "a prompt text": "Der Vorstand tritt am Montag geschlossen ab",
    "a prompt id": "kuendigung-mueller",
    "an answer": "Passwort lautet Sonnenuhr-77",
    "a user name in an error": "j.wolkenstein",
    "a host name in an error": "gpunode-0417.rz.example.internal",
    "an e-mail address in an error": "ottilie@brandauer.example",
    "a URL with credentials in an error": "https://svc:Xk9pLq2w@artifacts.example/models",
    "an IP address in a log": "10.83.147.22",
    "a cloud key in a log": "AKIAQ3EGZLMNTRWXYZ42",
    "a GitHub token in a log": "ghp_aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5",
    "a file path in evidence": "/srv/geheim/akten.db",
    "a private key in a log": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a name in config.json": "brandauer-holding/interner-assistent",
    "another field of config.json": "wandb_api_8c1f0aa2",
    "metadata of safetensors": "trainiert-von-wolkenstein",
    "a linear name": "falkenhorst_proj",
    "a local version": "brandauer.build.5521",
    "a processor name": "hypervisor-nordwind",
    "words of a workaround": "Sitzungsprotokoll",
}


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory, shifted_model: Path) -> Path:
    """A real run of a checkpoint in a telling place, with secrets in every string that a run can hold."""
    with pytest.MonkeyPatch.context() as patch:
        from gptq_diff.session import capture_all
        from tests.session.in_process import run_here

        patch.setattr(capture_all, "run_load", run_here)
        patch.setenv("HF_TOKEN", SECRETS["a token in the environment"])
        patch.setenv("OPENAI_API_KEY", SECRETS["an API key in the environment"])
        s = SECRETS
        home = tmp_path_factory.mktemp("home") / s["a home directory in the path of the model"]
        model = home / s["a project in the path of the model"]
        shutil.copytree(shifted_model, model)
        _spoil_checkpoint(model)
        root = home / s["the path of the run"] / s["the path of the prompt file"]
        run(asked(model, "sim-exllama,sim-gptq", max_new_tokens=2), root)
    _spoil_run(root)
    return root


def _spoil_checkpoint(model: Path) -> None:
    path = model / "config.json"
    config = json.loads(path.read_text())
    config.pop("gptq_diff", None)
    config["_name_or_path"] = SECRETS["a name in config.json"]
    config["report_to"] = SECRETS["another field of config.json"]
    path.write_text(json.dumps(config))
    for file in model.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118  no mapping
        save_file(tensors, file, {"author": SECRETS["metadata of safetensors"]})


def _spoil_run(root: Path) -> None:
    """What another machine's engines, users and models could have put there."""
    s, report = SECRETS, read_report(root / "report.json")
    log = tuple(s[k] for k in ("an IP address in a log", "a cloud key in a log", "a GitHub token in a log",
                               "a private key in a log"))  # fmt: skip
    words = f"{s['a user name in an error']} on {s['a host name in an error']}"
    error = (
        f"its worker ended with status 1: OSError: {words}: cannot open "
        f"{s['a URL with credentials in an error']} for {s['an e-mail address in an error']}"
    )
    evidence = (f"2 outputs are lost, see {s['a file path in evidence']}",)
    results = []
    for r in report.results:
        spoilt = replace(
            r, prompt=s["a prompt id"], text=s["an answer"],
            versions={**r.versions, "torch": f"2.13.0+{s['a local version']}"},
            layers=replace(r.layers, skipped=(*r.layers.skipped, SkippedLayer(f"model.{s['a linear name']}", error))),
            workarounds=(Workaround.run("padding", f"with the answer {s['words of a workaround']!r}",
                                        works=True),),
            findings=(*r.findings, Finding("unknown", 0.1, evidence, f"model.{s['a linear name']}")),
            experiments=(
                Experiment("not-run", r.backend, 0, error, {error: 1.0}, (error,)), *_pictured_experiments(error),
            ),
            kernel={**r.kernel, s["a linear name"]: s["a host name in an error"]},
        )  # fmt: skip
        results.append(spoilt)
        _rename(root, r.backend, r.prompt, s["a prompt id"])
    write_report(_with(report, tuple(results), error, log), root / "report.json")
    prompts = json.loads((root / "prompts.json").read_text())
    prompts = [{**p, "id": s["a prompt id"], "text": s["a prompt text"]} for p in prompts]
    (root / "prompts.json").write_text(json.dumps(prompts))
    raw = json.loads((root / "run.json").read_text())
    for backend in raw["backends"]:
        backend["finished"] = [s["a prompt id"]]
    (root / "run.json").write_text(json.dumps(raw))


def _pictured_experiments(error: str) -> tuple[Experiment, ...]:
    """What the page draws, with secrets in every string of it."""
    layer, path = f"model.{SECRETS['a linear name']}", SECRETS["a host name in an error"]
    ranges = (RowRange(1, 50, path, SECRETS["a prompt text"], 2, None), RowRange(51, 64, path, "ok", 0, 1e-3))
    figures = {"repeats": 20.0, "other_bits": 3.0, SECRETS["a file path in evidence"]: 1.0}
    return (
        Experiment("row-sweep", layer, 0, error, {}, (error,), None, ranges),
        Experiment("repeats", layer, 0, error, figures, (error,)),
    )


def _swept(backend: str) -> Sweep:
    """A prompt at many lengths: its id and the names of linears are in the picture."""
    layer = f"model.{SECRETS['a linear name']}"
    ranges = (SweepRange(1, 50, "overflow", layer), SweepRange(51, 64, SECRETS["an answer"], None))
    return Sweep(backend, SECRETS["a prompt id"], 1, 64, 1, ranges)


def _rename(root: Path, backend: str, old: str, new: str) -> None:
    """The captures and judgements of a prompt, as if it had always had that id; one judgement with a secret in it."""
    shutil.move(root / "captures" / backend / old, root / "captures" / backend / new)
    manifest = root / "captures" / backend / new / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "prompt": new}))
    for file in sorted((root / "judged" / backend).glob(f"{old}.*")):
        shutil.move(file, file.with_name(new + file.name[len(old) :]))
    judged = root / "judged" / backend / f"{new}.jsonl"
    rows = read_judged(judged)
    write_judged(judged, [*rows[:-1], replace(rows[-1], path=SECRETS["a host name in an error"])])


def _with(report: Report, results: tuple, error: str, log: tuple[str, ...]) -> Report:  # type: ignore[type-arg]
    s = SECRETS
    worst = next(r for r in results if r.status == "overflow")
    return replace(
        report, results=results, skipped_backends=(SkippedBackend("vllm-gptq", error, f"logs/{error}", log),),
        prompts=tuple(replace(p, id=s["a prompt id"]) for p in report.prompts),
        environment={**report.environment, "cpu": f"Intel {s['a processor name']}",
                     "HF_TOKEN": s["a token in the environment"], "key": s["an API key in the environment"]},
        verdict=replace(report.verdict, prompt=worst.prompt, backend=worst.backend,
                        summary=f"{report.verdict.summary} Asked: {s['a prompt text']!r} in {error}"),
        left_out=(f"2 of 2 captures: {error}",),
        sweeps=tuple(map(_swept, (worst.backend, s["a user name in an error"]))),
    )  # fmt: skip


def layers(data: bytes, depth: int = 0) -> Iterator[bytes]:
    """The bytes, and what is in them: zips with their names, gzip and deflate, base64, JSON and HTML escapes."""
    yield data
    if depth == 4:
        return
    if data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield archive.comment
            for info in archive.infolist():
                yield info.filename.encode() + info.extra + info.comment
                yield from layers(archive.read(info), depth + 1)
        return
    for unpack in (gzip.decompress, zlib.decompress, lambda d: zlib.decompress(d, -15)):
        try:
            yield from layers(unpack(data), depth + 1)
        except (OSError, EOFError, zlib.error):  # noqa: PERF203  most bytes are not packed
            continue
    for found in re.findall(rb"[A-Za-z0-9+/_-]{24,}={0,2}", data):
        plain = found.translate(bytes.maketrans(b"-_", b"+/"))
        try:
            inner = base64.b64decode(plain + b"=" * (-len(plain) % 4))
        except ValueError:
            continue
        if depth < 2:
            yield from layers(inner, depth + 2 if inner[:2] not in (b"\x1f\x8b", b"x\x9c", b"x\xda") else depth + 1)
    if b"\\u" in data or b"&" in data:
        text = data.decode(errors="replace")
        text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), text)
        yield re.sub(r"&#x?[0-9a-fA-F]+;|\\", "", text).encode(errors="replace")


def found_in(data: bytes) -> set[str]:
    """Which kinds of secrets are in it; upper and lower case are one."""
    left = {kind: secret.lower().encode() for kind, secret in SECRETS.items()}
    seen: set[str] = set()
    for layer in layers(data):
        lower = layer.lower()
        seen |= {kind for kind, secret in left.items() if kind not in seen and secret in lower}
    return seen


def test_there_are_25_of_different_kinds() -> None:
    assert len(SECRETS) == len(set(SECRETS.values())) == 25


def test_none_is_in_the_bundle(planted: Path) -> None:
    """Every one of them was in the run, or where it came from."""
    made = make_bundle(planted, Options(simulate=True), lambda _: None)
    assert {"report.html", "report.md", "report.json", "ISSUE.md", "environment.json"} <= made.files.keys()
    assert "repro.py" in made.files
    assert any(name.startswith("rows/") for name in made.files)
    assert found_in(made.data) == set()


def test_what_is_drawn_of_sweeps_and_experiments_is_there_without_them(planted: Path) -> None:
    """The pictures are in the bundle's page, with their numbers and with masks for what may not be shown."""
    with zipfile.ZipFile(io.BytesIO(make_bundle(planted, Options(simulate=True), lambda _: None).data)) as archive:
        data = data_of(archive.read("report.html").decode())
    first, other = (strip["backend"] for strip in data["lengths"][0]["backends"])
    assert (first, other) == ("sim-exllama", "backend-1")
    assert [r["last"] for r in data["lengths"][0]["backends"][0]["ranges"]] == [50, 64]
    assert [r["nonfinite"] for r in data["asked"][0]["rows"]] == [2, 0]
    assert data["asked"][0]["repeats"]["other"] == 3.0
    assert found_in(json.dumps(data).encode()) == set()


def test_the_search_sees_through_every_layer() -> None:
    """Or the test above would prove nothing."""
    secret = SECRETS["a user name in an error"].encode()
    page = b"<script>" + base64.b64encode(gzip.compress(b'{"a": "' + secret + b'"}')) + b"</script>"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("report.html", page)
    assert found_in(out.getvalue()) == {"a user name in an error"}
    assert found_in(base64.b64encode(zlib.compress(secret * 3))) == {"a user name in an error"}


def test_without_redaction_it_would_not_hold(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bundle with the records as they are: most of the secrets are in it, so the search finds them."""
    monkeypatch.setattr(redacted.Redaction, "report", lambda self, report: report)
    monkeypatch.setattr(redacted_run.Redaction, "judgement", lambda self, judgement: judgement)
    seen = found_in(make_bundle(planted, Options(simulate=True), lambda _: None).data)
    outside = {"the path of the run", "the path of the prompt file", "a name in config.json",
               "another field of config.json", "metadata of safetensors"}  # fmt: skip
    assert seen >= SECRETS.keys() - outside


def test_the_page_is_searched_as_deep_as_it_is_packed(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """report.html alone, with the records as they are."""
    monkeypatch.setattr(redacted.Redaction, "report", lambda self, report: report)
    made = make_bundle(planted, Options(simulate=True), lambda _: None)
    with zipfile.ZipFile(io.BytesIO(made.data)) as archive:
        page = archive.read("report.html")
    packed = [found_in(data) for data in re.findall(rb">([A-Za-z0-9+/]{400,}={0,2})<", page)]
    assert any("a prompt id" in seen for seen in packed)
    assert found_in(page) >= {"an answer", "a host name in an error", "a linear name"}


@pytest.mark.parametrize("part", ["kept", "environment", "public_name", "backend_reason", "versions"])
def test_every_part_of_it_is_needed(planted: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One part of the redaction switched off, and something is seen."""
    places: dict[str, Callable[[], None]] = {
        "kept": lambda: monkeypatch.setattr(redacted.Words, "kept", lambda self, text: text),
        "environment": lambda: monkeypatch.setattr(redacted.facts, "environment", dict),
        "public_name": lambda: monkeypatch.setattr(redacted.models, "public_name", str),
        "backend_reason": lambda: monkeypatch.setattr(redacted, "backend_reason", str),
        "versions": lambda: monkeypatch.setattr(redacted.facts, "versions", dict),
    }
    places[part]()
    assert found_in(make_bundle(planted, Options(simulate=True), lambda _: None).data) != set()


def test_why_there_is_no_repro_holds_none(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of `reduce` names paths; in the issue it is redacted like all else."""
    said = f"the checkpoint {planted} is not here"
    monkeypatch.setattr(making, "_reduced", lambda *_: (None, said))
    made = make_bundle(planted, Options(), lambda _: None)
    assert made.no_repro
    assert "repro.py" not in made.files
    assert found_in(made.data + made.no_repro.encode()) == set()


def test_what_an_engine_says_of_itself_in_the_script(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's name and a version that hold more than such names do."""
    gpu, version = f"NVIDIA H100 {SECRETS['a host name in an error']}", f"0.20.2+{SECRETS['a local version']}"
    record = json.loads((planted / "reduced" / "reduced.json").read_text())
    script = (planted / "reduced" / "repro.py").read_text()
    copy = planted.parent / "copy"
    shutil.copytree(planted, copy, dirs_exist_ok=True)
    record["seen_on"], record["live"] = {"gpu": gpu, "vllm": version}, True
    (copy / "reduced" / "reduced.json").write_text(json.dumps(record))
    (copy / "reduced" / "repro.py").write_text(f"# Seen on {gpu} with vLLM {version}\n{script}")
    made = make_bundle(copy, Options(simulate=True), lambda _: None)
    assert found_in(made.data) == set()
    with zipfile.ZipFile(io.BytesIO(made.data)) as archive:
        assert b"# Seen on NVIDIA H100 with vLLM 0.20.2\n" in archive.read("repro.py")
