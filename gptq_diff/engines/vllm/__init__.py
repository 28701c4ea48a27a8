"""The parts of the vLLM engine: what it is started with, its quantised modules, their proof, taps and steps."""
