"""Cases: a model, prompts, backends, and what is expected of them; running them, and checking many (docs/cases.md)."""
