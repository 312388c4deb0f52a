// silu(gate) up: a thread VEC of n elements, and those a grid further on.

__device__ inline W sigmoid(W x) { return (W)1 / ((W)1 + exp_of(-x)); }

#define EACH(i, n)                                                                        \
  for (i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC, step = (i64)gridDim.x * blockDim.x * VEC; i < n; \
       i += step)

KERNEL forward(T* y, const T* gate, const T* up, i64 n) {
  EACH(i, n) {
    Pack a = load(gate + i), b = load(up + i), out;
    for (int j = 0; j < VEC; j++) {
      W g = wide(a.at[j]);
      narrow(out.at[j], g * sigmoid(g) * wide(b.at[j]));
    }
    store(y + i, out);
  }
}

KERNEL gradient(T* d_gate, T* d_up, const T* dy, const T* gate, const T* up, i64 n) {
  EACH(i, n) {
    Pack d = load(dy + i), a = load(gate + i), b = load(up + i), to_gate, to_up;
    for (int j = 0; j < VEC; j++) {
      W g = wide(a.at[j]), dy = wide(d.at[j]), s = sigmoid(g);
      narrow(to_up.at[j], dy * g * s);
      narrow(to_gate.at[j], dy * wide(b.at[j]) * s * ((W)1 + g * ((W)1 - s)));
    }
    store(d_gate + i, to_gate);
    store(d_up + i, to_up);
  }
}
