"""Planting faults: one file a kind. Nothing else of gptq_diff is imported: nothing is shared with what judges."""
