"""Imports point one way, what has to start fast imports nothing heavy, and a worker runs on Python 3.9.

The sources are read, not run, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import gptq_diff

PACKAGE = Path(gptq_diff.__file__).parent

NOUNS = {"errors", "records"}
PURE = NOUNS | {"checkpoint", "kernels", "numerics"}

# Module or folder -> the others it may import; itself and gptq_diff.__version__ always. A new one is added here by
# whoever makes it, with as little as it needs. "cli" wires everything but what only a worker may load.
MAY_IMPORT: dict[str, set[str]] = {
    "records": set(),
    "errors": set(),
    "text": set(),
    "suggest": set(),
    "whole_file": set(),
    "jobs": {"whole_file"},
    "memory": set(),
    "processes": set(),
    "log_end": {"text"},
    "environment": set(),
    "stage": {"errors"},
    "exit_codes": NOUNS,
    "judged_file": NOUNS | {"whole_file"},
    "diagnosed_file": NOUNS | {"whole_file"},
    "between_file": NOUNS | {"whole_file"},
    "rows_file": NOUNS | {"whole_file"},
    "releases": NOUNS | {"suggest"},
    "built_file": {"errors"},
    "toml_file": {"errors"},
    "config_file": {"errors", "suggest", "toml_file"},
    "presets": NOUNS | {"releases", "suggest"},
    "environments": NOUNS | {"log_end", "suggest", "text", "whole_file"},
    "upstream": NOUNS | {"built_file", "log_end", "processes", "releases", "text", "whole_file"},
    "hosts": NOUNS | {"built_file", "environments", "presets", "releases", "upstream"},
    "prompts": NOUNS | {"suggest", "text"},
    "checkpoint": NOUNS,
    "numerics": NOUNS,
    "faults": set(),
    "kernels": PURE | {"built_file", "releases"},
    "capture": NOUNS | {"checkpoint", "jobs", "numerics", "whole_file"},
    "engines": PURE | {"capture", "faults", "jobs", "releases"},
    "worker": PURE | {"capture", "engines", "jobs", "memory", "processes"},
    "worker_process": NOUNS | {"jobs", "processes"},
    "launch": NOUNS | {"jobs", "log_end", "memory", "presets", "stage", "text", "worker_process"},
    "models": NOUNS | {"checkpoint", "numerics"},
    "compare": PURE | {"capture", "judged_file", "rows_file"},
    "fix": PURE | {"diagnose", "models"},
    "diagnose": PURE | {"capture", "compare", "jobs", "judged_file"},
    "reduce": PURE | {"capture", "compare", "processes"},
    "report": NOUNS | {"between_file", "judged_file", "rows_file", "text", "whole_file"},
    "session": PURE
    | {"fix", "reduce"}
    | {"capture", "compare", "diagnose", "environment", "environments", "hosts", "jobs", "launch", "memory", "models"}
    | {"worker_process"}
    | {"presets", "prompts", "releases", "suggest", "upstream"}
    | {"between_file", "judged_file", "diagnosed_file", "report", "stage", "text"},
    "bisection": NOUNS | {"cases", "environments", "presets", "releases", "upstream"},
    "bundle": NOUNS | {"capture", "checkpoint", "compare", "judged_file", "reduce", "report", "session", "text"},
    "cases": NOUNS
    | {"capture", "checkpoint", "config_file", "environment", "environments", "faults", "hosts", "jobs"}
    | {"judged_file", "log_end", "models", "presets", "processes", "prompts", "report", "session", "stage"}
    | {"suggest", "text", "toml_file", "whole_file"},
    "ci_job": {"errors"},
    "server_probe": {"errors", "suggest", "text", "whole_file"},
    "__main__": {"cli"},
}
NEVER_IN_CLI = {"engines", "worker", "kernels", "numerics", "__main__"}

# What a worker may find in the interpreter of an engine: torch and its friends, one engine with what it brings along
# (huggingface_hub comes with transformers), and numba with its llvmlite, which are optional.
WORKER_MODULES = {"torch", "numpy", "safetensors"}
WORKER_MODULES |= {"transformers", "huggingface_hub", "accelerate", "vllm", "auto_gptq", "gptqmodel"}
WORKER_MODULES |= {"optimum", "exllama_kernels", "exllamav2_kernels"}  # with GPTQModel; with auto_gptq
WORKER_MODULES |= {"numba", "llvmlite"}
HEAVY = {"torch", "transformers", "numpy", "numba", "safetensors", "tokenizers", "jinja2", "vllm", "httpx2"}


def unit_of(path: Path) -> str:
    """The module or folder directly below the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def parsed(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def sources() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports, at whatever depth; `from a import b` gives `a.b`."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def only_for_types(path: Path) -> set[int]:
    """The lines below `if TYPE_CHECKING:`."""
    blocks = (
        node
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    return {line for block in blocks for line in range(block.lineno, (block.body[-1].end_lineno or block.lineno) + 1)}


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, unit) of what a file imports from this package."""
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] == "gptq_diff" and len(parts) > 1 and parts[1] != "__version__":
            yield line, parts[1]


def module_file(name: str) -> Path | None:
    """The file of `gptq_diff.a.b`, or of `gptq_diff.a` where b is a name in it."""
    parts = name.split(".")[1:]
    while parts:
        for path in (PACKAGE.joinpath(*parts).with_suffix(".py"), PACKAGE.joinpath(*parts, "__init__.py")):
            if path.is_file():
                return path
        parts.pop()
    return None


def worker_closure() -> list[Path]:
    """Every file that a worker or a compiling process may load, imports inside functions included."""
    todo, found = [PACKAGE / "worker.py", PACKAGE / "upstream" / "compile.py"], {PACKAGE / "__init__.py"}
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        if (path.parent / "__init__.py").is_file():
            todo.append(path.parent / "__init__.py")
        for _, name in imports(path):
            if name.startswith("gptq_diff."):
                file = module_file(name)
                if file is not None:
                    todo.append(file)
    return sorted(found)


def test_every_module_has_its_place_in_the_table() -> None:
    """A new folder without rules could import anything."""
    units = {unit_of(path) for path in sources()} - {"__init__", "cli"}
    assert sorted(units - MAY_IMPORT.keys()) == [], "add them to MAY_IMPORT in this file"


def test_the_table_has_no_circle() -> None:
    """Imports point one way: removing what imports nothing, again and again, must leave nothing."""
    left = {unit: others - {unit} for unit, others in MAY_IMPORT.items() if unit != "__main__"}
    while left:
        ready = {unit for unit, others in left.items() if not others & left.keys()}
        assert ready, f"a circle among {sorted(left)}"
        left = {unit: others for unit, others in left.items() if unit not in ready}


@pytest.mark.parametrize("unit", sorted(MAY_IMPORT))
def test_imports_point_one_way(unit: str) -> None:
    """design.md: cli wires everything, report knows only records, nothing but a worker imports an engine."""
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {other}"
        for path in sources()
        if unit_of(path) == unit
        for line, other in own_imports(path)
        if other != unit and other not in MAY_IMPORT[unit]
    ]
    assert wrong == []


def test_the_cli_loads_nothing_that_belongs_to_a_worker() -> None:
    """An engine in the parent's process would take its memory, and its crashes."""
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {other}"
        for path in sources()
        if unit_of(path) == "cli"
        for line, other in own_imports(path)
        if other in NEVER_IN_CLI
    ]
    assert wrong == []


def test_only_a_worker_imports_an_engine() -> None:
    """Said a second time, from the other side, because all else rests on it."""
    importers = {
        unit_of(path) for path in sources() for _, other in own_imports(path) if other in ("engines", "worker")
    }
    assert importers <= {"worker", "engines"}


def test_a_report_knows_records_alone() -> None:
    """So that it can be made anywhere, of any finished run."""
    known = {other for path in sources() if unit_of(path) == "report" for _, other in own_imports(path)}
    assert known <= {"report", "records", "errors", "between_file", "judged_file", "rows_file", "text", "whole_file"}
    heavy = {
        (path.parent.name, name.split(".")[0])
        for path in sources() if unit_of(path) == "report"
        for _, name in imports(path) if name.split(".")[0] in HEAVY
    }  # fmt: skip
    assert heavy == {("html", "jinja2")}


def test_the_worker_closure_is_not_empty() -> None:
    """Otherwise the tests below would prove nothing."""
    names = {str(path.relative_to(PACKAGE)) for path in worker_closure()}
    assert {"worker.py", "records/report.py", "errors.py", "engines/base.py", "kernels/base.py"} <= names


@pytest.mark.parametrize("path", worker_closure(), ids=lambda path: str(path.relative_to(PACKAGE)))
class TestWorkerFiles:
    """A worker runs under the interpreter of its engine, from Python 3.9 up, with little installed."""

    def test_it_is_python_3_9(self, path: Path) -> None:
        """No match statement, no parenthesised with."""
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 9))

    def test_its_annotations_are_not_evaluated(self, path: Path) -> None:
        """`X | None` in a signature is an error to 3.9 otherwise."""
        tree = parsed(path)
        annotated = any(isinstance(node, (ast.AnnAssign, ast.FunctionDef)) for node in ast.walk(tree))
        future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
        assert future or not annotated

    def test_it_calls_nothing_newer(self, path: Path) -> None:
        """What later Pythons added to the standard library, as far as it is easily used by accident."""
        newer = []
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                keywords = {keyword.arg for keyword in node.keywords}
                if (called == "zip" and "strict" in keywords) or (
                    called == "dataclass" and keywords & {"slots", "kw_only"}
                ):
                    newer.append(f"line {node.lineno}: {called}")
                if called in ("bit_count", "pairwise", "aiter", "anext"):
                    newer.append(f"line {node.lineno}: {called}")
                if called in ("isinstance", "issubclass") and isinstance(node.args[1], ast.BinOp):
                    newer.append(f"line {node.lineno}: {called} with |")
        assert newer == []

    def test_it_imports_what_an_engines_interpreter_has(self, path: Path) -> None:
        """The parent installs nothing there; what only a type checker reads does not count."""
        allowed = WORKER_MODULES | {"gptq_diff"} | sys.stdlib_module_names
        unread = only_for_types(path)
        assert {name.split(".")[0] for line, name in imports(path) if line not in unread} <= allowed


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["backends"],
        ["backends", "--json"],
        ["model", "build", "--help"],
        ["run", "--help"],
        ["check", "--help"],
        ["cases", "--help"],
    ],
    ids=" ".join,
)
def test_what_has_to_start_fast_imports_nothing_heavy(arguments: list[str]) -> None:
    """Importing torch takes seconds; the whole start is to stay under 0.4 s, which a benchmark measures."""
    code = (
        "import sys\n"
        f"sys.argv = ['gptq-diff', *{arguments!r}]\n"
        "from gptq_diff.cli.app import main\n"
        "try:\n    main()\nfinally:\n"
        f"    print('heavy:', sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.endswith("heavy: []\n"), done.stderr


def test_help_and_json_do_without_rich() -> None:
    """It would double the time that --help takes."""
    for arguments in (["--help"], ["backends", "--json"]):
        code = (
            f"import sys; sys.argv = ['gptq-diff', *{arguments!r}]\n"
            "from gptq_diff.cli.app import main\n"
            "try:\n    main()\nfinally:\n    print('rich' in sys.modules, file=sys.stderr)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.stderr == "False\n", arguments


def test_nobody_imports_click() -> None:
    """Typer has its own copy of it since 0.29; only Typer's public names are relied on."""
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in sources()
        for line, name in imports(path)
        if name.split(".")[0] == "click" or name.startswith(("typer._", "typer.core"))
    ]
    assert wrong == []
