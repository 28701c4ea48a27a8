"""A checkpoint with more headroom: powers of two moved between neighbouring tensors, the function unchanged."""
