// Small kernels, right ones and wrong ones; what is wrong with each is in test_emulator.py.
#include <cuda.h>
#include <cuda_fp16.h>
#include <mma.h>

__forceinline__ __device__ void copy16(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :  : "r"(to), "l"(from) : "memory");
}
__forceinline__ __device__ void commit() {
  asm volatile("cp.async.commit_group;" :  : );
}
__forceinline__ __device__ void wait1() {
  asm volatile("cp.async.wait_group 1;" :  :  : "memory");
}
__forceinline__ __device__ void wait0() {
  asm volatile("cp.async.wait_group 0;" :  :  : "memory");
}
__forceinline__ __device__ void load4(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, uint32_t p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3) : "r"(p) : "memory");
}
__forceinline__ __device__ void load2t(uint32_t& r0, uint32_t& r1, uint32_t p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r0), "=r"(r1) : "r"(p) : "memory");
}
__forceinline__ __device__ void mma16(float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};" : "=f"(d0), "=f"(d1), "=f"(d2), "=f"(d3) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(d0), "f"(d1), "f"(d2), "f"(d3));
}
__forceinline__ __device__ void mmatf(float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};" : "=f"(d0), "=f"(d1), "=f"(d2), "=f"(d3) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(d0), "f"(d1), "f"(d2), "f"(d3));
}
__forceinline__ __device__ void mmasp(float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, uint32_t b2, uint32_t b3, uint32_t e) {
  asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%12, %13, %14, %15}, %16, 0;" : "=f"(d0), "=f"(d1), "=f"(d2), "=f"(d3) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(b2), "r"(b3), "f"(d0), "f"(d1), "f"(d2), "f"(d3), "r"(e));
}

// y[block] = sum of the block's 64 values; `steps` says how much of the synchronisation is there.
template <int barrier_at>
__device__ void sum64(float* x, float* y, float* part) {
  int t = threadIdx.x;
  part[t] = x[blockIdx.x * 64 + t];
  if (barrier_at != 0) __syncthreads();
  for (int half = 32; half > 0; half /= 2) {
    if (t < half) part[t] = part[t] + part[t + half];
    if (barrier_at != 1 || half != 32) __syncthreads();
  }
  if (t == 0) y[blockIdx.x] = part[0];
}
extern "C" __global__ void __launch_bounds__(64) sum_right(float* __restrict__ x, float* __restrict__ y) {
  __shared__ alignas(64) float part[64];
  sum64<-1>(x, y, part);
}
extern "C" __global__ void __launch_bounds__(64) sum_without_first_barrier(float* __restrict__ x, float* __restrict__ y) {
  __shared__ alignas(64) float part[64];
  sum64<0>(x, y, part);
}
extern "C" __global__ void __launch_bounds__(64) sum_without_second_barrier(float* __restrict__ x, float* __restrict__ y) {
  __shared__ alignas(64) float part[64];
  sum64<1>(x, y, part);
}

// y = x reversed within a warp, through shared memory.
extern "C" __global__ void reverse_right(float* x, float* y) {
  __shared__ float line[32];
  line[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  y[threadIdx.x] = line[31 - threadIdx.x];
}
extern "C" __global__ void reverse_without_syncwarp(float* x, float* y) {
  __shared__ float line[32];
  line[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = line[31 - threadIdx.x];
}

// Two tiles of 16 bytes a thread, the second on its way while the first is used; y = neighbour's data.
template <bool wait_first, bool barrier>
__device__ void pipeline(float* x, float* y, float* tiles) {
  int t = threadIdx.x;
  for (int stage = 0; stage < 2; ++stage) {
    copy16(__cvta_generic_to_shared(tiles + stage * 256 + t * 4), x + stage * 256 + t * 4);
    commit();
  }
  for (int stage = 0; stage < 2; ++stage) {
    if (stage == 0) { if (wait_first) wait1(); } else wait0();
    if (barrier) __syncthreads();
    for (int i = 0; i < 4; ++i) y[stage * 256 + t * 4 + i] = tiles[stage * 256 + (t ^ 33) * 4 + i];
  }
}
extern "C" __global__ void __launch_bounds__(64) pipeline_right(float* x, float* y) {
  extern __shared__ __align__(64) float tiles[];
  pipeline<true, true>(x, y, tiles);
}
extern "C" __global__ void __launch_bounds__(64) pipeline_without_wait(float* x, float* y) {
  extern __shared__ __align__(64) float tiles[];
  pipeline<false, true>(x, y, tiles);
}
extern "C" __global__ void __launch_bounds__(64) pipeline_without_barrier(float* x, float* y) {
  extern __shared__ __align__(64) float tiles[];
  pipeline<true, false>(x, y, tiles);
}
// The copy of the next tile starts while others still read this one.
extern "C" __global__ void __launch_bounds__(64) pipeline_overwrites(float* x, float* y) {
  extern __shared__ __align__(64) float tiles[];
  int t = threadIdx.x;
  for (int stage = 0; stage < 2; ++stage) {
    copy16(__cvta_generic_to_shared(tiles + t * 4), x + stage * 256 + t * 4);
    commit();
    wait0();
    __syncthreads();
    for (int i = 0; i < 4; ++i) y[stage * 256 + t * 4 + i] = tiles[(t ^ 33) * 4 + i];
  }
}

extern "C" __global__ void outside_array(float* x, float* y, int at) {
  __shared__ float first[32];
  __shared__ float second[32];
  first[threadIdx.x] = x[threadIdx.x];
  second[threadIdx.x] = 0.0f;
  __syncthreads();
  y[threadIdx.x] = first[threadIdx.x + at];
}
extern "C" __global__ void outside_dynamic(float* x, float* y, int at) {
  extern __shared__ float line[];
  line[threadIdx.x + at] = x[threadIdx.x];
  y[threadIdx.x] = line[threadIdx.x + at];
}
extern "C" __global__ void outside_buffer(float* x, float* y, int at) {
  y[threadIdx.x] = x[threadIdx.x + at];
}
extern "C" __global__ void outside_local(float* x, float* y, int at) {
  float line[4];
  for (int i = 0; i < 4; ++i) line[i] = x[i];
  y[threadIdx.x] = line[(threadIdx.x + at) % 8];
}
extern "C" __global__ void never_written(float* x, float* y) {
  __shared__ float line[32];
  y[threadIdx.x] = line[threadIdx.x];
}
extern "C" __global__ void misaligned(float* x, float* y) {
  *(float4*)(y + 4 * threadIdx.x) = *(float4*)(x + 4 * threadIdx.x + 1);
}
extern "C" __global__ void different_instructions(float* x, float* y) {
  if (threadIdx.x < 16)
    y[threadIdx.x] = __shfl_sync(~0u, x[threadIdx.x], 0);
  else
    y[threadIdx.x] = __shfl_down_sync(~0u, x[threadIdx.x], 1);
}
extern "C" __global__ void hanging(float* x, float* y) {
  if (threadIdx.x == 32) y[1] = __shfl_sync(3u, 1.0f, 0);
  else __syncthreads();
  y[0] = x[0];
}

extern "C" __global__ void warp_functions(int* x, int* y) {
  int t = threadIdx.x, v = x[t];
  y[t] = __shfl_xor_sync(~0u, v, 5);
  y[64 + t] = __shfl_up_sync(~0u, v, 3, 16);
  y[128 + t] = __shfl_down_sync(~0u, v, 3, 16);
  y[192 + t] = __ballot_sync(~0u, v % 3 == 0);
  if (t % 32 < 12) {
    unsigned mask = __activemask();
    y[256 + t] = mask;
    y[320 + t] = __shfl_sync(mask, v, 11);
  }
}
extern "C" __global__ void atomics(int* x, int* total, float* sum, int* top) {
  atomicAdd(total, x[blockIdx.x * 64 + threadIdx.x]);
  atomicAdd(sum, 0.5f);
  atomicMax(top, x[blockIdx.x * 64 + threadIdx.x]);
}

// y [16, 8] = a [16, 16] b [16, 8], operands by ldmatrix.
extern "C" __global__ void __launch_bounds__(32) product(half* a, half* b, float* y) {
  __shared__ alignas(16) half as[256];
  __shared__ alignas(16) half bs[128];
  int t = threadIdx.x;
  for (int i = 0; i < 8; ++i) as[t * 8 + i] = a[t * 8 + i];
  for (int i = 0; i < 4; ++i) bs[t * 4 + i] = b[t * 4 + i];
  __syncthreads();
  uint32_t fa[4], fb[2];
  float d[4] = {0, 0, 0, 0};
  load4(fa[0], fa[1], fa[2], fa[3], __cvta_generic_to_shared(as + (t & 15) * 16 + (t >> 4) * 8));
  load2t(fb[0], fb[1], __cvta_generic_to_shared(bs + (t & 15) * 8));
  mma16(d[0], d[1], d[2], d[3], fa[0], fa[1], fa[2], fa[3], fb[0], fb[1]);
  for (int i = 0; i < 4; ++i) y[(i / 2 * 8 + t / 4) * 8 + t % 4 * 2 + i % 2] = d[i];
}
// y [16, 16] = a [16, 16] b [16, 16]
extern "C" __global__ void __launch_bounds__(32) product_wmma(half* a, half* b, float* y) {
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, half, nvcuda::wmma::row_major> fa;
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, half, nvcuda::wmma::col_major> fb;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> d;
  nvcuda::wmma::fill_fragment(d, 0.0f);
  nvcuda::wmma::load_matrix_sync(fa, a, 16);
  nvcuda::wmma::load_matrix_sync(fb, b, 16);
  nvcuda::wmma::mma_sync(d, fa, fb, d);
  nvcuda::wmma::store_matrix_sync(y, d, 16, nvcuda::wmma::mem_row_major);
}
// y [16, 8] = a [16, 8] b [8, 8]
extern "C" __global__ void __launch_bounds__(32) product_tf32(uint32_t* a, uint32_t* b, float* y) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  float d[4] = {0, 0, 0, 0};
  mmatf(d[0], d[1], d[2], d[3], a[g * 8 + t], a[g * 8 + 64 + t], a[g * 8 + t + 4], a[g * 8 + 64 + t + 4], b[t * 8 + g], b[t * 8 + 32 + g]);
  for (int i = 0; i < 4; ++i) y[(i / 2 * 8 + g) * 8 + t * 2 + i % 2] = d[i];
}
// Of each two floats x: both as halves and as bfloat16 in a word, the first one below; 2^x of each.
extern "C" __global__ void conversions(float* x, uint32_t* bits, float* powers) {
  int at = threadIdx.x * 2;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits[at]) : "f"(x[at + 1]), "f"(x[at]));
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits[at + 1]) : "f"(x[at + 1]), "f"(x[at]));
  for (int i = 0; i < 2; ++i) asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(powers[at + i]) : "f"(x[at + i]));
}
// y = four bytes of x[1]:x[0] as x[2] says.
extern "C" __global__ void permute(uint32_t* x, uint32_t* y) {
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y[0]) : "r"(x[0]), "r"(x[1]), "r"(x[2]));
}
// y [16, 8] = a [16, 32] b [8, 32] transposed; values [16, 16] of a, and a word for each lane.
extern "C" __global__ void __launch_bounds__(32) product_sparse(uint32_t* values, uint32_t* words, uint32_t* b, float* y) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  float d[4] = {0, 0, 0, 0};
  mmasp(d[0], d[1], d[2], d[3], values[g * 8 + t], values[g * 8 + 64 + t], values[g * 8 + t + 4], values[g * 8 + 64 + t + 4],
        b[g * 16 + t], b[g * 16 + t + 4], b[g * 16 + t + 8], b[g * 16 + t + 12], words[threadIdx.x]);
  for (int i = 0; i < 4; ++i) y[(i / 2 * 8 + g) * 8 + t * 2 + i % 2] = d[i];
}
