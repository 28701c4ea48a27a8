// Registers gptq_gemm and gptq_shuffle of vLLM 0.33's csrc/quantization/gptq/q_gemm.cu under the names that vLLM has.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

using torch::stable::Tensor;

Tensor gptq_gemm(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, bool use_exllama,
                 bool use_v2_format, int64_t bit);
void gptq_shuffle(Tensor q_weight, int64_t bit);

STABLE_TORCH_LIBRARY(_C, ops) {
  ops.def("gptq_gemm(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, bool use_exllama, "
          "bool use_v2_format, int bit) -> Tensor");
  ops.def("gptq_shuffle(Tensor! q_weight, int bit) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(_C, CUDA, ops) {
  ops.impl("gptq_gemm", TORCH_BOX(&gptq_gemm));
  ops.impl("gptq_shuffle", TORCH_BOX(&gptq_shuffle));
}
