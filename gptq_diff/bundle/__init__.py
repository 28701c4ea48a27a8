"""The bug-report artifact: what maintainers need of a run in one zip, and nothing that is private."""
