// Root-mean-square norm: a block a row of `width` elements.

__device__ inline void scale(T* y, const T* x, const T* w, W inverse, i64 width) {
  for (i64 i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC) {
    Pack a = load(x + i), b = load(w + i), out;
    for (int j = 0; j < VEC; j++) narrow(out.at[j], wide(a.at[j]) * inverse * wide(b.at[j]));
    store(y + i, out);
  }
}

// y = x / rms(x) w, and 1 / rms(x).
KERNEL forward(T* y, W* inverse, const T* x, const T* w, i64 width, double eps) {
  i64 row = blockIdx.x;
  W sum = 0;
  for (i64 i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC) {
    Pack a = load(x + row * width + i);
    for (int j = 0; j < VEC; j++) sum += wide(a.at[j]) * wide(a.at[j]);
  }
  W mean = block_sum(sum) / (W)width;
  W inv = (W)(1.0 / sqrt((double)mean + eps));
  if (threadIdx.x == 0) inverse[row] = inv;
  scale(y + row * width, x + row * width, w, inv, width);
}

// y again.
KERNEL again(T* y, const T* x, const T* w, const W* inverse, i64 width) {
  i64 row = blockIdx.x;
  scale(y + row * width, x + row * width, w, inverse[row], width);
}

// dx = (g w - x mean(g w x) / rms²) / rms, and to it `beside`, if there is one.
KERNEL gradient(T* dx, const T* g, const T* beside, const T* x, const T* w, const W* inverse, i64 width) {
  i64 row = blockIdx.x;
  g += row * width;
  x += row * width;
  W inv = inverse[row], sum = 0;
  for (i64 i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC) {
    Pack a = load(g + i), b = load(w + i), c = load(x + i);
    for (int j = 0; j < VEC; j++) sum += wide(a.at[j]) * wide(b.at[j]) * wide(c.at[j]);
  }
  W along = block_sum(sum) / (W)width * inv * inv;
  for (i64 i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC) {
    Pack a = load(g + i), b = load(w + i), c = load(x + i), d, out;
    if (beside) d = load(beside + row * width + i);
    for (int j = 0; j < VEC; j++) {
      W y = (wide(a.at[j]) * wide(b.at[j]) - wide(c.at[j]) * along) * inv;
      narrow(out.at[j], beside ? y + wide(d.at[j]) : y);
    }
    store(dx + row * width + i, out);
  }
}
