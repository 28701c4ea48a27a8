"""What needs a GPU with vLLM: scripts that print figures and write them as JSON."""
