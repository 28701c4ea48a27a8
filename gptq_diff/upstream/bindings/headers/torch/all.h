// Stands before torch's own torch/all.h, which holds all of its C++ frontend: what gptq_gemm uses of it is in types.h,
// and nvcc takes half the time and memory for that (43 s against 88 s of processor time for vLLM 0.13.0's q_gemm.cu).
#pragma once
#include <torch/types.h>
