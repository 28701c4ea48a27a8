"""Qwen2.5-32B's shape, all 448 linears, on a CPU: time and memory against what the machine allows."""
