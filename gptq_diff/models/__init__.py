"""Checkpoints that `gptq-diff model build` makes: a real small one, a tiny random one, one with the shapes of a 32B."""
