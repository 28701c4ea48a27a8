"""`gptq-diff kernels list`."""

from __future__ import annotations

from dataclasses import asdict

from gptq_diff.cli.output import console, print_json
from gptq_diff.upstream.store import user_store


def list_kernels(*, as_json: bool) -> None:
    """Every compiled kernel with what it was compiled for, and every pack."""
    store = user_store()
    kept, fetched = store.kept(), store.fetched()
    if as_json:
        listed = [
            {"release": str(one.release), **asdict(one.built), "folder": str(one.folder),
             "backends": list(one.release.backends)}
            for one in kept
        ]  # fmt: skip
        sources = [str(release) for release in fetched]
        print_json({"schema_version": 1, "folder": str(store.root), "kernels": listed, "sources": sources})
        return
    from rich.table import Table
    from rich.text import Text

    screen = console()
    if kept:
        table = Table("release", "for torch", "GPU", "nvcc", "seconds", "backends", box=None, pad_edge=False)
        for one in kept:
            built = one.built
            backends = ", ".join(one.release.backends)
            table.add_row(built.release, built.torch, built.arch, built.nvcc, f"{built.seconds:.0f}", backends)
        screen.print(table)
    names = ", ".join(map(str, fetched)) or "none"
    screen.print(Text(f"sources fetched: {names}; all in {store.root}"), soft_wrap=True)
