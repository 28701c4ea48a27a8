"""What happens between the quantised linears: recomputed from what was captured of them, and judged like they are."""
