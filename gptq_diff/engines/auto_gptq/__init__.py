"""The parts of the auto_gptq engine: what it is given to read, and which of its kernels a route comes to."""
