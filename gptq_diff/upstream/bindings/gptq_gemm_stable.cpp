// The same as gptq_gemm.cpp for releases that are written for torch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

using torch::stable::Tensor;

#ifdef GPTQ_G_IDX
  #define G_IDX Tensor b_g_idx,
  #define G_IDX_SCHEMA "Tensor b_g_idx, "
  #define Q_PERM Tensor q_perm,
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

Tensor gptq_gemm(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, G_IDX bool use_exllama,
                 V2_FORMAT int64_t bit);
void gptq_shuffle(Tensor q_weight, Q_PERM int64_t bit);

STABLE_TORCH_LIBRARY(_C, ops) {
  ops.def("gptq_gemm(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, " G_IDX_SCHEMA
          "bool use_exllama, " V2_FORMAT_SCHEMA "int bit) -> Tensor");
  ops.def("gptq_shuffle(Tensor! q_weight, " Q_PERM_SCHEMA "int bit) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(_C, CUDA, ops) {
  ops.impl("gptq_gemm", TORCH_BOX(&gptq_gemm));
  ops.impl("gptq_shuffle", TORCH_BOX(&gptq_shuffle));
}
