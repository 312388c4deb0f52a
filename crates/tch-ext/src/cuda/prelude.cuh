// What every kernel source begins with. NUMBER (bf16, float, double) and VEC (elements that move together) come from
// the compiler's options.
#define KERNEL extern "C" __global__ void
typedef long long i64;

struct bf16 {
  unsigned short bits;
};

__device__ inline float wide(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline float wide(float x) { return x; }
__device__ inline double wide(double x) { return x; }

__device__ inline void narrow(bf16& y, float x) {
  unsigned bits = __float_as_uint(x);
  y.bits = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
__device__ inline void narrow(float& y, float x) { y = x; }
__device__ inline void narrow(double& y, double x) { y = x; }

typedef NUMBER T;
typedef decltype(wide(T())) W;

__device__ inline float exp_of(float x) { return expf(x); }
__device__ inline double exp_of(double x) { return exp(x); }

// VEC neighbours, in one access.
struct alignas(sizeof(T) * VEC) Pack {
  T at[VEC];
};
__device__ inline Pack load(const T* x) { return *(const Pack*)x; }
__device__ inline void store(T* y, Pack p) { *(Pack*)y = p; }

// The sum, or the largest, of what the threads of a block hold; each gets it. All of them call it.
template <bool MOST>
__device__ inline W joined(W x) {
  __shared__ W parts[32];
  for (int i = 16; i > 0; i /= 2) {
    W y = __shfl_xor_sync(0xffffffffu, x, i);
    x = MOST ? (y > x ? y : x) : x + y;
  }
  int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  if (lane == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = parts[lane < warps ? lane : 0];
  if (!MOST && lane >= warps) x = 0;
  for (int i = 16; i > 0; i /= 2) {
    W y = __shfl_xor_sync(0xffffffffu, x, i);
    x = MOST ? (y > x ? y : x) : x + y;
  }
  __syncthreads();
  return x;
}
__device__ inline W block_sum(W x) { return joined<false>(x); }
__device__ inline W block_max(W x) { return joined<true>(x); }
