// Registers gptq_gemm and gptq_shuffle of a vLLM release's csrc/quantization/gptq/q_gemm.cu under the names that vLLM has.
//
// GPTQ_G_IDX: gptq_gemm takes g_idx, and gptq_shuffle a permutation (0.29 does, 0.32 does not).
// GPTQ_V2_FORMAT: gptq_gemm takes use_v2_format (from 0.12 on).
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#ifdef GPTQ_G_IDX
  #define G_IDX at::Tensor b_g_idx,
  #define G_IDX_SCHEMA "Tensor b_g_idx, "
  #define Q_PERM at::Tensor q_perm,
  #define Q_PERM_SCHEMA "Tensor q_perm, "
#else
  #define G_IDX
  #define G_IDX_SCHEMA ""
  #define Q_PERM
  #define Q_PERM_SCHEMA ""
#endif
#ifdef GPTQ_V2_FORMAT
  #define V2_FORMAT bool use_v2_format,
  #define V2_FORMAT_SCHEMA "bool use_v2_format, "
#else
  #define V2_FORMAT
  #define V2_FORMAT_SCHEMA ""
#endif

at::Tensor gptq_gemm(at::Tensor a, at::Tensor b_q_weight, at::Tensor b_gptq_qzeros, at::Tensor b_gptq_scales,
                     G_IDX bool use_exllama, V2_FORMAT int64_t bit);
void gptq_shuffle(at::Tensor q_weight, Q_PERM int64_t bit);

TORCH_LIBRARY(_C, ops) {
  ops.def("gptq_gemm(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, " G_IDX_SCHEMA
          "bool use_exllama, " V2_FORMAT_SCHEMA "int bit) -> Tensor");
  ops.def("gptq_shuffle(Tensor! q_weight, " Q_PERM_SCHEMA "int bit) -> ()");
}

TORCH_LIBRARY_IMPL(_C, CUDA, ops) {
  ops.impl("gptq_gemm", &gptq_gemm);
  ops.impl("gptq_shuffle", &gptq_shuffle);
}
