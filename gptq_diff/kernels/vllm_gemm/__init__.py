"""vLLM's `gptq_gemm`, live: its signatures by release, which of its paths runs, and how to force one."""
