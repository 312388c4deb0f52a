// The whole of our C++: an autograd node whose backward is a Rust closure, threads, a small product, memory.
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/variable.h>

#include <dlfcn.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

using torch::autograd::Node;
using torch::autograd::variable_list;

extern "C" {
// Implemented in Rust. `grads` may hold nulls (undefined). Fills `out` (nulls allowed) with owned tensors;
// on failure returns an owned C string.
char* tch_ext_backward(void* state, at::Tensor** grads, size_t n_grads, at::Tensor** out, size_t n_out);
void tch_ext_drop(void* state);
void tch_ext_free_string(char* text);
void* tch_ext_allocate(size_t bytes);
void tch_ext_release(void* place);
}

namespace {
struct RustNode : public Node {
  RustNode(void* state, torch::autograd::edge_list&& edges) : Node(std::move(edges)), state_(state) {}
  ~RustNode() override { drop(); }

  variable_list apply(variable_list&& grads) override {
    // So it is where the gradients are to have gradients: what this node adds to them would be missing.
    if (at::GradMode::is_enabled()) {
      throw std::runtime_error(
          "a function whose backward is Rust cannot be differentiated twice; do without create_graph");
    }
    std::lock_guard<std::mutex> lock(mutex_);
    if (!state_) {
      throw std::runtime_error(
          "backward through a graph whose saved tensors are already freed; keep the graph to do so twice");
    }
    std::vector<at::Tensor*> in, out(num_outputs(), nullptr);
    for (auto& g : grads) in.push_back(g.defined() ? &g : nullptr);
    char* error = tch_ext_backward(state_, in.data(), in.size(), out.data(), out.size());
    variable_list result;
    for (auto* t : out) {
      std::unique_ptr<at::Tensor> owned(t);
      result.push_back(owned ? std::move(*owned) : at::Tensor());
    }
    if (error) {
      std::string text(error);
      tch_ext_free_string(error);
      throw std::runtime_error(text);
    }
    return result;
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    drop();
  }

  std::string name() const override { return "RustFunction"; }

 private:
  void drop() {
    if (state_) tch_ext_drop(state_);
    state_ = nullptr;
  }
  std::mutex mutex_;
  void* state_;
};

struct RustAllocator final : public c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* place = bytes ? tch_ext_allocate(bytes) : nullptr;
    TORCH_CHECK(place || !bytes, "cannot allocate ", bytes, " bytes of memory");
    return {place, place, &tch_ext_release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &tch_ext_release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

char* copy(const char* text) { return strdup(text); }

// at::cuda::CUDAGraph, which lies in a library that is found at start or not at all: by the names of its functions.
struct Recorder {
  using Pool = std::pair<unsigned long long, unsigned long long>;
  void (*make)(void*, bool);
  void (*unmake)(void*);
  void (*begin)(void*, Pool, int);
  void (*end)(void*);
  void (*replay)(void*);
  Pool (*pool)(void*);
  // More than a graph takes: its size is not ours to know.
  static constexpr size_t kBytes = 4096;

  static const Recorder& get() {
    static const Recorder it = [] {
      Recorder r{};
      find(r.make, "_ZN2at4cuda9CUDAGraphC1Eb");
      find(r.unmake, "_ZN2at4cuda9CUDAGraphD1Ev");
      find(r.begin, "_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
      find(r.end, "_ZN2at4cuda9CUDAGraph11capture_endEv");
      find(r.replay, "_ZN2at4cuda9CUDAGraph6replayEv");
      find(r.pool, "_ZN2at4cuda9CUDAGraph4poolEv");
      return r;
    }();
    TORCH_CHECK(it.make && it.unmake && it.begin && it.end && it.replay && it.pool,
                "this libtorch cannot record what a device is told");
    return it;
  }
  template <class F>
  static void find(F& to, const char* name) {
    to = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
  }
};

struct Graph {
  void* place;
  c10::Device device;
  Graph(c10::Device device) : place(calloc(1, Recorder::kBytes)), device(device) {
    TORCH_CHECK(place, "no memory for a graph");
    Recorder::get().make(place, false);
  }
  ~Graph() {
    Recorder::get().unmake(place);
    free(place);
  }
};

// Streams that nobody is on at present, device by device. libtorch has so many; more would be the same ones again.
constexpr int kStreams = 32;
std::mutex streams_lock;
std::map<int, std::vector<c10::Stream>> idle_streams;
std::map<int, int> made_streams;
}  // namespace

extern "C" {
// Attaches `outputs` to the graph behind `inputs`; takes `state` in every case. New tensors go to `attached`.
char* tch_ext_attach(at::Tensor** outputs, size_t n_out, at::Tensor** inputs, size_t n_in, void* state,
                     at::Tensor** attached) {
  std::shared_ptr<Node> node;
  try {
    torch::autograd::edge_list edges;
    bool wanted = false;
    for (size_t i = 0; i < n_in; i++) {
      wanted = wanted || inputs[i]->requires_grad();
      edges.push_back(torch::autograd::impl::gradient_edge(*inputs[i]));
    }
    if (wanted && at::GradMode::is_enabled()) {
      node = std::shared_ptr<Node>(new RustNode(state, std::move(edges)), torch::autograd::deleteNode);
    } else {
      tch_ext_drop(state);
    }
    state = nullptr;
    for (size_t i = 0; i < n_out; i++) {
      // Detached first: an output may alias an input or carry a history of its own.
      at::Tensor y = outputs[i]->detach();
      if (node) torch::autograd::set_history(y, node);
      attached[i] = new at::Tensor(std::move(y));
    }
    return nullptr;
  } catch (const std::exception& e) {
    if (state) tch_ext_drop(state);
    return copy(e.what());
  }
}

bool tch_ext_grad_enabled() { return at::GradMode::is_enabled(); }
void tch_ext_set_grad_enabled(bool enabled) { at::GradMode::set_enabled(enabled); }

// What a matrix is, or a vector, as one row, without a tensor operation: its memory, sizes, strides, bytes of an element,
// dtype (0 f32, 1 bf16, 2 another). Says how many dimensions there are; 0 where it is neither.
struct Flat {
  void* data;
  int64_t rows, columns, stride, inner, bytes;
  int32_t kind;
  bool cpu;
};
int64_t tch_ext_flat(const at::Tensor* t, Flat* out) {
  int64_t n = t->defined() && t->layout() == at::kStrided ? t->dim() : 0;
  if (n != 1 && n != 2) return 0;
  auto type = t->scalar_type();
  *out = {t->data_ptr(), n == 2 ? t->size(0) : 1, t->size(n - 1), n == 2 ? t->stride(0) : 0, t->stride(n - 1),
          t->element_size(), type == at::kFloat ? 0 : type == at::kBFloat16 ? 1 : 2, t->is_cpu()};
  return n;
}

// Runs `call(state, begin, end)` over parts of 0..n on libtorch's own threads.
void tch_ext_parallel(int64_t n, int64_t grain, void (*call)(void*, int64_t, int64_t), void* state) {
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { call(state, begin, end); });
}

int tch_ext_threads() { return at::get_num_threads(); }

// `c [m, n] (+)= a [m, k] b`, in f32; b [k, n], for bf16 with rows k and k + 1 interleaved. False: not on this machine.
bool tch_ext_brgemm(bool half, int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
                    const void* a, const void* b, float* c) {
  try {
    if (half) {
      at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, static_cast<const at::BFloat16*>(a),
                                  static_cast<const at::BFloat16*>(b), c, true);
    } else {
      at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, static_cast<const float*>(a),
                                  static_cast<const float*>(b), c, false);
    }
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// Takes from this thread's part of the processor what `tch_ext_brgemm` set up in it. libtorch believes that it stays from
// one product to the next; oneDNN's own products take it away.
void tch_ext_brgemm_release() {
  try {
    at::native::cpublas::brgemm_release(true);
  } catch (const std::exception&) {
  }
}

// CPU tensors take their memory from `tch_ext_allocate` from now on.
void tch_ext_set_allocator() {
  static RustAllocator allocator;
  c10::SetCPUAllocator(&allocator, 1);
}

// cuBLAS adds up parts of a sum in f32, where libtorch lets it round them to half precision.
void tch_ext_sum_wide() {
  at::globalContext().setAllowBF16ReductionCuBLAS(false);
  at::globalContext().setAllowFP16ReductionCuBLAS(false);
}

// Peak and current bytes allocated on the accelerator; false where there is none.
bool tch_ext_device_bytes(int index, int64_t* peak, int64_t* current) {
  try {
    if (!at::accelerator::isAccelerator(at::kCUDA) || at::accelerator::deviceCount() <= index) return false;
    auto stats = at::accelerator::getDeviceStats(static_cast<c10::DeviceIndex>(index));
    *peak = stats.allocated_bytes[0].peak;
    *current = stats.allocated_bytes[0].current;
    return true;
  } catch (const std::exception&) {
    return false;
  }
}
// The peak is what is in use now.
bool tch_ext_reset_device_peak(int index) {
  try {
    if (!at::accelerator::isAccelerator(at::kCUDA) || at::accelerator::deviceCount() <= index) return false;
    at::accelerator::resetPeakStats(static_cast<c10::DeviceIndex>(index));
    return true;
  } catch (const std::exception&) {
    return false;
  }
}
// The native handle of the stream that libtorch's operators go to on that CUDA device.
bool tch_ext_current_stream(int32_t index, void** stream) {
  try {
    auto device = c10::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
    *stream = at::accelerator::getCurrentStream(device.index()).native_handle();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// Causal attention over texts one behind another, by libtorch's kernels. out: the result, the logarithms of the sums,
// and two states of the generator, which backward wants.
char* tch_ext_flash(const at::Tensor* q, const at::Tensor* k, const at::Tensor* v, const at::Tensor* queries,
                    const at::Tensor* keys, const at::Tensor* used, int64_t most_queries, int64_t most_keys,
                    int64_t before, at::Tensor** out) {
  try {
    auto window = before < 0 ? std::optional<int64_t>() : std::optional<int64_t>(before);
    auto end = before < 0 ? std::optional<int64_t>() : std::optional<int64_t>(0);
    auto in_use = used ? std::optional<at::Tensor>(*used) : std::optional<at::Tensor>();
    auto made = at::_flash_attention_forward(*q, *k, *v, *queries, *keys, most_queries, most_keys, 0.0, true, false,
                                             std::nullopt, window, end, in_use);
    out[0] = new at::Tensor(std::get<0>(made));
    out[1] = new at::Tensor(std::get<1>(made));
    out[2] = new at::Tensor(std::get<2>(made));
    out[3] = new at::Tensor(std::get<3>(made));
    return nullptr;
  } catch (const std::exception& e) {
    return copy(e.what());
  }
}

// This thread's operators go to a stream that no other thread is on; `own` and `before` are streams by number.
bool tch_ext_enter_stream(int32_t index, int64_t* own, int64_t* before) {
  try {
    c10::impl::VirtualGuardImpl cuda(c10::kCUDA);
    c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
    std::lock_guard<std::mutex> lock(streams_lock);
    auto& idle = idle_streams[index];
    if (idle.empty()) {
      if (made_streams[index]++ >= kStreams) return false;
      idle.push_back(cuda.getStreamFromGlobalPool(device));
    }
    cuda.synchronizeDevice(device.index());
    *own = idle.back().id();
    *before = cuda.exchangeStream(idle.back()).id();
    idle.pop_back();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}
void tch_ext_leave_stream(int32_t index, int64_t own, int64_t before) {
  try {
    c10::impl::VirtualGuardImpl cuda(c10::kCUDA);
    c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
    cuda.synchronizeDevice(device.index());
    cuda.exchangeStream(c10::Stream(c10::Stream::UNSAFE, device, before));
    // What graphs took stays taken until libtorch runs out of memory, beside whoever else uses the device.
    at::accelerator::emptyCache();
    std::lock_guard<std::mutex> lock(streams_lock);
    idle_streams[index].push_back(c10::Stream(c10::Stream::UNSAFE, device, own));
  } catch (const std::exception&) {
  }
}

// What this thread's operators tell the device from here on is written down and not done. In the memory of `beside`, if
// it is not null.
char* tch_ext_record(int32_t index, Graph* beside, Graph** graph) {
  try {
    c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
    c10::DeviceGuard guard(device);
    auto made = std::make_unique<Graph>(device);
    auto& recorder = Recorder::get();
    // 1: what other threads ask for meanwhile is their affair.
    recorder.begin(made->place, beside ? recorder.pool(beside->place) : Recorder::Pool{0, 0}, 1);
    *graph = made.release();
    return nullptr;
  } catch (const std::exception& e) {
    return copy(e.what());
  }
}
char* tch_ext_recorded(Graph* graph) {
  try {
    c10::DeviceGuard guard(graph->device);
    Recorder::get().end(graph->place);
    return nullptr;
  } catch (const std::exception& e) {
    return copy(e.what());
  }
}
char* tch_ext_replay(Graph* graph) {
  try {
    c10::DeviceGuard guard(graph->device);
    Recorder::get().replay(graph->place);
    return nullptr;
  } catch (const std::exception& e) {
    return copy(e.what());
  }
}
void tch_ext_forget(Graph* graph) {
  try {
    c10::DeviceGuard guard(graph->device);
    delete graph;
  } catch (const std::exception&) {
  }
}

// The tensor's numbers were changed in place.
void tch_ext_changed(at::Tensor* t) { t->unsafeGetTensorImpl()->bump_version(); }

// Null: no gradient.
bool tch_ext_set_grad(at::Tensor* t, const at::Tensor* grad) {
  try {
    t->mutable_grad() = grad ? *grad : at::Tensor();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

void tch_ext_free_c_string(char* text) { free(text); }
}
