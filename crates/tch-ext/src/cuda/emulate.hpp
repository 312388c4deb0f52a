// Enough of CUDA to run kernels on a CPU, one block after another. A block's threads are fibres, which run in turn up to
// the next barrier; exchanges within a warp are barriers of the block, so all of a block's threads must take part in them.
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

struct Index {
  unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
// Entered by its context once, and by a jump from then on, which asks nothing of the system.
struct Fibre {
  ucontext_t context;
  jmp_buf place;
  std::vector<char> stack;
  bool begun, done;
};
static std::vector<Fibre> fibres;
static ucontext_t outside;
static jmp_buf scheduler;
static void (*body)(uint64_t*);
static uint64_t* arguments;
static uint64_t exchanged[1024];

static void yield() {
  unsigned me = threadIdx.x;
  if (!_setjmp(fibres[me].place)) _longjmp(scheduler, 1);
  threadIdx.x = me;
}
static void start() {
  unsigned me = threadIdx.x;
  body(arguments);
  fibres[me].done = true;
  _longjmp(scheduler, 1);
}
// Runs a fibre up to its next barrier, or its end.
static void go(Fibre& f) {
  if (_setjmp(scheduler)) return;
  if (f.begun) _longjmp(f.place, 1);
  f.begun = true;
  swapcontext(&outside, &f.context);
}
static void run(void (*kernel)(uint64_t*), uint64_t* args, unsigned blocks, unsigned threads) {
  body = kernel;
  arguments = args;
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  fibres.resize(threads);
  for (unsigned block = 0; block < blocks; block++) {
    blockIdx = {block, 0, 0};
    for (auto& f : fibres) {
      f.stack.resize(1 << 16);
      f.begun = f.done = false;
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.data();
      f.context.uc_stack.ss_size = f.stack.size();
      f.context.uc_link = nullptr;
      makecontext(&f.context, start, 0);
    }
    for (bool any = true; any;) {
      any = false;
      for (unsigned i = 0; i < threads; i++) {
        if (fibres[i].done) continue;
        threadIdx = {i, 0, 0};
        go(fibres[i]);
        any = true;
      }
    }
  }
}
template <class A>
static A argument(uint64_t bits) {
  A a;
  static_assert(sizeof(A) == 8, "parameters are pointers, i64 and double");
  std::memcpy(&a, &bits, 8);
  return a;
}
template <class... A, size_t... I>
static void call(void (*f)(A...), uint64_t* args, std::index_sequence<I...>) {
  f(argument<A>(args[I])...);
}
template <class... A>
static void call(void (*f)(A...), uint64_t* args) {
  call(f, args, std::index_sequence_for<A...>());
}
template <class... A>
static constexpr size_t parameters(void (*)(A...)) {
  return sizeof...(A);
}
}  // namespace emulator

static inline void __syncthreads() { emulator::yield(); }
template <class V>
static inline V __shfl_xor_sync(unsigned, V x, int mask) {
  std::memcpy(&emulator::exchanged[threadIdx.x], &x, sizeof x);
  emulator::yield();
  V y;
  std::memcpy(&y, &emulator::exchanged[threadIdx.x ^ mask], sizeof y);
  emulator::yield();
  return y;
}
static inline float __uint_as_float(unsigned x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
static inline unsigned __float_as_uint(float x) {
  unsigned y;
  std::memcpy(&y, &x, 4);
  return y;
}
