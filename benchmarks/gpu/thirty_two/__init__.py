"""Qwen2.5-32B's shape, all 448 linears, on one GPU and on several."""
