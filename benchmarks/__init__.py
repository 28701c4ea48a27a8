"""What gptq-diff costs, measured: `make bench`, and `python -m benchmarks.memory` for the shapes of a 32B model."""
