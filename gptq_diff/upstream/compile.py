"""The compiling process: `python -m gptq_diff.upstream.compile SPEC.json RESULT.json`, under the kernel's interpreter.

What compilers say goes to its output. A kernel gets its place by rename once it is whole and has been loaded.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, MutableMapping
from datetime import datetime, timezone
from pathlib import Path

from gptq_diff.built_file import NAME, Built
from gptq_diff.errors import BackendError
from gptq_diff.upstream.first_error import first_error
from gptq_diff.upstream.spec import Compiled, CompileSpec

PART = ".part-"
_RELEASE = re.compile(r"release (\d+\.\d+)")


def cuda_home(environment: Mapping[str, str]) -> Path | None:
    """Folder with bin/nvcc: the one named, else on PATH, pip's or the usual one, best with CUDA's headers; or None."""
    named = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    if named:
        return Path(named[0]) if (Path(named[0]) / "bin" / "nvcc").is_file() else None
    found = shutil.which("nvcc", path=environment.get("PATH"))
    places = [Path(found).resolve().parent.parent] if found else []
    places += sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*"))
    places.append(Path("/usr/local/cuda"))
    there = [place for place in places if (place / "bin" / "nvcc").is_file()]
    whole = [place for place in there if (place / "include" / "cuda_runtime.h").is_file()]
    return next(iter([*whole, *there]), None)


def cuda_headers() -> list[str]:
    """CUDA's headers as pip installs them beside torch: nvcc's own folder may lack cuBLAS and cuSPARSE."""
    packages = Path(sysconfig.get_paths()["purelib"])
    return [str(place) for place in sorted(packages.glob("nvidia/*/include")) if (place / "cublas_v2.h").is_file()]


def version_of(nvcc: Path) -> str:
    """As 13.0; "unknown" where it does not say."""
    try:
        said = subprocess.run(  # noqa: S603  the compiler that is about to be used
            [str(nvcc), "--version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    found = _RELEASE.search(said.stdout)
    return found[1] if found else "unknown"


def compile_release(spec: CompileSpec, environment: MutableMapping[str, str]) -> Compiled:
    """Compile it, unless that was done before; BackendError for what is missing here, or does not compile."""
    import torch

    if torch.version.cuda is None:
        raise BackendError(
            f"torch {torch.__version__} of {sys.executable} is built without CUDA",
            "take an interpreter whose torch is built for CUDA: --python",
        )
    arch = spec.arch or _arch_here()
    key = f"torch{torch.__version__}-cuda{torch.version.cuda}-sm{arch.replace('.', '')}-{spec.recipe}"
    target = Path(spec.target) / key
    if (target / NAME).is_file():
        return Compiled(str(target), None, None, cached=True)
    home = cuda_home(environment)
    if home is None:
        raise BackendError(
            "there is no nvcc here (looked for in CUDA_HOME, on PATH and in /usr/local/cuda)",
            f"install CUDA's compiler {torch.version.cuda}, or set CUDA_HOME",
        )
    environment.update(CUDA_HOME=str(home), TORCH_CUDA_ARCH_LIST=arch)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{PART}{os.getpid()}-"))
    started = time.monotonic()
    try:
        keep = part / "keep"
        keep.mkdir()
        library = _compiled(spec, part)
        shutil.copy2(library, keep / library.name)
        Built(
            package=spec.package, version=spec.version, library=library.name, torch=str(torch.__version__),
            installed_torch=importlib.metadata.version("torch"), cuda=torch.version.cuda, arch=arch,
            nvcc=version_of(home / "bin" / "nvcc"), sources=spec.digest, seconds=round(time.monotonic() - started, 1),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        ).write(keep)  # fmt: skip
        with contextlib.suppress(OSError):  # another process was first: its kernel is as good
            keep.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Compiled(str(target), None, None, cached=False)


def _arch_here() -> str:
    import torch

    if not torch.cuda.is_available():
        raise BackendError(
            "there is no NVIDIA GPU here to compile for", "name its compute capability: --arch 9.0, for example"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


def _compiled(spec: CompileSpec, part: Path) -> Path:
    """The library, which has been loaded once; BackendError with the first error where it does not come to be."""
    import torch
    from torch.utils import cpp_extension

    work = part / "work"
    work.mkdir()
    try:
        cpp_extension.load(
            name=spec.name, sources=list(spec.sources), extra_cflags=list(spec.defines),
            extra_cuda_cflags=[*spec.cuda_flags, *spec.defines], extra_include_paths=[*spec.include, *cuda_headers()],
            build_directory=str(work), is_python_module=False, with_cuda=True, verbose=True,
        )  # fmt: skip
        namespace, *operations = spec.ops
        for operation in operations:
            getattr(getattr(torch.ops, namespace), operation)
    except (RuntimeError, OSError, AttributeError, subprocess.SubprocessError) as e:
        print(e, flush=True)  # noqa: T201  into the log
        said = first_error(str(e)) or first_error(str(e.__cause__ or "")) or str(e).strip().splitlines()[0][:300]
        raise BackendError(f"it does not compile with torch {torch.__version__}: {said}") from e
    return work / f"{spec.name}.so"


def sweep(folder: Path) -> None:
    """Remove what compiling processes left behind that are no longer there."""
    for place in folder.glob(f"{PART}*"):
        pid = place.name.removeprefix(PART).partition("-")[0]
        if not pid.isdigit() or not _lives(int(pid)):
            shutil.rmtree(place, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main(argv: list[str]) -> int:
    """Expected failures become a result; anything else a traceback in the log."""
    spec, result = CompileSpec.read(Path(argv[0])), Path(argv[1])
    try:
        made = compile_release(spec, os.environ)
    except BackendError as e:
        made = Compiled(None, str(e), e.hint, cached=False)
    except ImportError as e:
        made = Compiled(None, f"{sys.executable} cannot import {e.name}: {e}", "install torch there", cached=False)
    made.write(result)
    return 0 if made.failure is None else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
