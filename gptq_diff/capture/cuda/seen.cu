// One kernel call of an engine, looked at where it lies: x and y are read once, each tensor's figures are found, both
// are copied where that is wanted, and y is given its bias. 16-bit values, eight to a vector; nothing is allocated.
//
// seen.ptx beside this file is what is loaded (gptq_diff.capture.cuda.driver); `make ptx` makes it anew.
#include <cuda_fp16.h>

#define MOST_PARTS 8
#define THREADS 256

struct Seen {
  const uint4 *x;                  // [M, K], contiguous
  uint4 *y;                        // [M, N], contiguous; without its bias
  uint4 *to;                       // x, then every part's columns by themselves; null where nothing is to be copied
  const uint4 *bias;               // [N] float16, added to y once y was read; null where there is none
  unsigned *told;                  // [1 + parts, 3]: largest finite magnitude (bits), NaN, infinities; of x, then parts
  unsigned rows;
  unsigned inner_vectors;          // of a row of x
  unsigned row_vectors;            // of a row of y
  unsigned parts;
  unsigned infinity;               // its bits, in the dtype of x and y
  unsigned width_vectors[MOST_PARTS];
  unsigned unused;                 // the size is a multiple of 8
};

struct Figures {
  unsigned top_pair = 0, top = 0, nan = 0, inf = 0;

  __device__ void look(unsigned pair, unsigned infinity) {
    pair &= 0x7fff7fffu;
    if (__vcmpgeu2(pair, infinity * 0x10001u) == 0) {
      top_pair = __vmaxu2(top_pair, pair);
      return;
    }
    for (int half = 0; half < 2; ++half) {
      unsigned bits = half ? pair >> 16 : pair & 0xffffu;
      if (bits > infinity) ++nan;
      else if (bits == infinity) ++inf;
      else top = max(top, bits);
    }
  }

  __device__ void look(uint4 v, unsigned infinity) {
    look(v.x, infinity);
    look(v.y, infinity);
    look(v.z, infinity);
    look(v.w, infinity);
  }

  // Of all threads of the block, to `told`.
  __device__ void tell(unsigned *told) {
    __shared__ unsigned of_warp[3][THREADS / 32];
    top = max(top, max(top_pair & 0xffffu, top_pair >> 16));
    for (int distance = 16; distance; distance >>= 1) {
      top = max(top, __shfl_xor_sync(~0u, top, distance));
      nan += __shfl_xor_sync(~0u, nan, distance);
      inf += __shfl_xor_sync(~0u, inf, distance);
    }
    unsigned warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) {
      of_warp[0][warp] = top;
      of_warp[1][warp] = nan;
      of_warp[2][warp] = inf;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int other = 1; other < THREADS / 32; ++other) {
        top = max(top, of_warp[0][other]);
        nan += of_warp[1][other];
        inf += of_warp[2][other];
      }
      if (top) atomicMax(told, top);
      if (nan) atomicAdd(told + 1, nan);
      if (inf) atomicAdd(told + 2, inf);
    }
    __syncthreads();
  }
};

__device__ unsigned added(unsigned pair, unsigned bias) {
  __half2 a = *reinterpret_cast<__half2 *>(&pair), b = *reinterpret_cast<__half2 *>(&bias);
  __half2 sum = __halves2half2(__float2half_rn(__low2float(a) + __low2float(b)),
                               __float2half_rn(__high2float(a) + __high2float(b)));
  return *reinterpret_cast<unsigned *>(&sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) seen(const __grid_constant__ Seen s) {
  const unsigned long long thread = blockIdx.x * (unsigned long long)THREADS + threadIdx.x;
  const unsigned long long step = gridDim.x * (unsigned long long)THREADS;
  uint4 *to = s.to;
  const unsigned x_vectors = s.rows * s.inner_vectors, first_of_block = blockIdx.x * THREADS;
  if (first_of_block < x_vectors) {
    Figures of_x;
#pragma unroll 1
    for (unsigned long long i = thread; i < x_vectors; i += step) {
      uint4 v = s.x[i];
      of_x.look(v, s.infinity);
      if (to) to[i] = v;
    }
    of_x.tell(s.told);
  }
  if (to) to += x_vectors;
  unsigned first = 0;
  for (unsigned part = 0; part < s.parts; ++part) {
    const unsigned width = s.width_vectors[part], vectors = s.rows * width;
    if (first_of_block < vectors) {
      Figures of_part;
#pragma unroll 1
      for (unsigned long long i = thread; i < vectors; i += step) {
        unsigned row = (unsigned)i / width, column = first + ((unsigned)i - row * width);
        uint4 *at = s.y + (row * (unsigned long long)s.row_vectors + column);
        uint4 v = *at;
        of_part.look(v, s.infinity);
        if (to) to[i] = v;
        if (s.bias) {
          uint4 b = s.bias[column];
          v.x = added(v.x, b.x);
          v.y = added(v.y, b.y);
          v.z = added(v.z, b.z);
          v.w = added(v.w, b.w);
          *at = v;
        }
      }
      of_part.tell(s.told + 3 * (part + 1));
    }
    if (to) to += vectors;
    first += width;
  }
}
