"""Bundles from somebody else: what is not exactly a bundle is refused in one sentence, and nothing is written."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_diff.bundle import verify as module
from gptq_diff.bundle.archive import manifest, packed
from gptq_diff.bundle.verify import BadBundle, verify

Program = Callable[..., tuple[int, str, str]]
FILES = {"report.html": b"<p>", "report.md": b"# a", "report.json": b"{}", "ISSUE.md": b"b", "repro.py": b"1\n" * 9}


def zipped(entries: list[tuple[str | zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in entries:
            archive.writestr(name, data)
    return out.getvalue()


def with_entry(name: str | zipfile.ZipInfo, data: bytes = b"x") -> bytes:
    """A bundle with one more file, which its manifest has as well."""
    told = name.filename if isinstance(name, zipfile.ZipInfo) else name
    return zipped([*FILES.items(), (name, data), ("manifest.json", manifest({**FILES, told: data}))])


def typed(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def with_manifest(raw: object) -> bytes:
    return zipped([*FILES.items(), ("manifest.json", raw if isinstance(raw, bytes) else json.dumps(raw).encode())])


def lying() -> bytes:
    """The directory and the local header say that a file is small, and it unpacks to more."""
    data = zipped([("ISSUE.md", b"0" * 100_000), *[e for e in FILES.items() if e[0] != "ISSUE.md"],
                   ("manifest.json", manifest({**FILES, "ISSUE.md": b"0" * 3000}))])  # fmt: skip
    return data.replace(struct.pack("<I", 100_000), struct.pack("<I", 3000))


def encrypted() -> bytes:
    data = bytearray(packed(FILES))
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    return bytes(data)


GOOD = manifest(FILES)
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a sound zip"),
    "no zip": (b"PK\x03\x04 no", "not a sound zip"),
    "cut short": (packed(FILES)[:-30], "not a sound zip"),
    "up and out": (with_entry("../evil.py"), "leads out of its folder"),
    "up and out inside": (with_entry("rows/../../evil.safetensors"), "leads out"),
    "up and out, Windows": (with_entry("..\\evil.py"), "leads out"),
    "absolute": (with_entry("/etc/passwd"), "leads out"),
    "a drive": (with_entry("C:/evil"), "leads out"),
    "a symbolic link": (with_entry(typed("report.md", 0o120777), b"/etc/passwd"), "symbolic link"),
    "a device": (with_entry(typed("repro.safetensors", 0o020666)), "not a plain file"),
    "a folder": (zipped([*FILES.items(), ("rows/", b""), ("manifest.json", GOOD)]), "not a plain file"),
    "twice": (zipped([*FILES.items(), ("report.md", b"other"), ("manifest.json", GOOD)]), "twice"),
    "an unknown file": (with_entry("run.sh"), "no file of a bundle"),
    "a pickle": (with_entry("rows/a/b.pt"), "no file of a bundle"),
    "a null byte": (with_entry("repro.safetensors~").replace(b"tensors~", b"tensors\0"), "no file of a bundle"),
    "a bomb": (with_entry("repro.safetensors", b"\0" * 10_000_000), "times its size"),
    "a lie about its size": (lying(), ""),
    "encrypted": (encrypted(), "encrypted"),
    "packed otherwise": (zipped([*FILES.items(), ("manifest.json", GOOD)], zipfile.ZIP_LZMA), "packed in a way"),
    "no manifest": (zipped([*FILES.items()]), "no manifest.json"),
    "a manifest of nothing": (with_manifest(b"{"), "manifest.json is damaged"),
    "a manifest that is a list": (with_manifest([]), "manifest.json is damaged"),
    "a deep manifest": (with_manifest(b"[" * 4000), "manifest.json is damaged"),
    "another version": (with_manifest({"schema_version": 2, "files": {}, "gptq_diff": ""}), "schema_version"),
    "not in the manifest": (
        zipped([*FILES.items(), ("repro.safetensors", b"x"), ("manifest.json", GOOD)]), "not in its manifest",
    ),
    "only in the manifest": (with_manifest(json.loads(manifest({**FILES, "rows/a/b.safetensors": b""}))), "not in it"),
    "another content": (zipped([*{**FILES, "ISSUE.md": b"c"}.items(), ("manifest.json", GOOD)]), "not what its"),
    "another size": (zipped([*{**FILES, "ISSUE.md": b"b "}.items(), ("manifest.json", GOOD)]), "not what its"),
    "no issue": (packed({k: v for k, v in FILES.items() if k != "ISSUE.md"}), "it has no ISSUE.md"),
}  # fmt: skip


def test_a_sound_one(tmp_path: Path, program: Program) -> None:
    (tmp_path / "b.zip").write_bytes(packed(FILES))
    assert verify(tmp_path / "b.zip").files == {name: len(data) for name, data in sorted(FILES.items())}
    code, out, err = program("bundle", "--verify", tmp_path / "b.zip")
    assert (code, out) == (0, "")
    assert "sound; 5 files" in err
    code, out, _ = program("bundle", "--verify", tmp_path / "b.zip", "--json")
    assert json.loads(out)["files"]["repro.py"] == 18


@pytest.mark.parametrize(("data", "said"), BAD.values(), ids=BAD)
def test_anything_else_is_refused(
    data: bytes, said: str, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, one sentence with a hint, and no file appears anywhere near."""
    place = tmp_path / "in" / "b.zip"
    place.parent.mkdir()
    place.write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = program("bundle", "--verify", place)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("gptq-diff: not a bundle to trust: ")
    assert err.count("\n") == 2
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_is_not_there(tmp_path: Path, program: Program) -> None:
    code, _, err = program("bundle", "--verify", tmp_path / "none.zip")
    assert code == 2
    assert "does not exist" in err


def test_too_many_and_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused from the zip's directory alone, before anything is unpacked."""
    monkeypatch.setattr(module, "_digest", lambda *_: pytest.fail("it was unpacked"))
    (tmp_path / "b.zip").write_bytes(packed(FILES))
    for name, limit, said in (("MOST_FILES", 5, "6 files"), ("MOST_UNPACKED", 10, "more than 10")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, limit)
            with pytest.raises(BadBundle, match=said):
                verify(tmp_path / "b.zip")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_is_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes changed anywhere: either it is as good as before, or a BadBundle, and never another exception."""
    whole = bytearray(packed(FILES))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    place = tmp_path_factory.mktemp("b") / "b.zip"
    place.write_bytes(bytes(whole))
    try:
        found = verify(place)
    except BadBundle:
        return
    assert found.files == {name: len(content) for name, content in sorted(FILES.items())}


def test_the_same_files_give_the_same_bytes() -> None:
    """In whatever order they come; manifest.json last of the top, times and modes fixed."""
    data = packed(FILES)
    assert data == packed(dict(reversed(FILES.items())))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
    assert [i.filename for i in infos] == [
        "report.html", "report.md", "report.json", "ISSUE.md", "repro.py", "manifest.json",
    ]  # fmt: skip
    assert {(i.date_time, i.external_attr, i.create_system, i.comment, i.extra) for i in infos} == {
        ((1980, 1, 1, 0, 0, 0), 0o100644 << 16, 3, b"", b"")
    }
