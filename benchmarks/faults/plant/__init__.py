"""Planting faults: one file a kind. Nothing here imports gptq_diff, so nothing is shared with the code that judges."""
