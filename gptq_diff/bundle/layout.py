"""What may lie in a bundle, under which names, and how large: `make` keeps to it and `verify` holds others to it."""

from __future__ import annotations

import re

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
TOP = ("report.html", "report.md", "report.json", "ISSUE.md", "repro.py", "repro.safetensors", MANIFEST)
"""Files at the top, in the zip's order; repro.safetensors is the script's data where they do not fit into it."""
ENVIRONMENT = "environment.json"
PROMPTS = "prompts.json"
NAMES = re.compile(
    r"(?:report\.html|report\.md|report\.json|ISSUE\.md|repro\.py|repro\.safetensors|manifest\.json|environment\.json|"
    r"prompts\.json|rows/[A-Za-z0-9._~-]{1,200}/[A-Za-z0-9._~-]{1,200}\.safetensors)"
)
"""Every name that a bundle may hold; `rows/BACKEND/PROMPT.safetensors` are captured rows."""
MAX_SIZE = 10_000_000
"""Bytes of a bundle, unless more is asked for."""
MOST_FILES = 2_000
MOST_UNPACKED = 512_000_000
"""Bytes of all files of a bundle that `verify` reads; above that it refuses without unpacking."""
MOST_RATIO = 200
"""Times that a file may be larger than what it is packed into; text and float16 stay far below."""
