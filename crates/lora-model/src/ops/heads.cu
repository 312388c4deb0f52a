// Rows of `2 half` elements, moved between [B, T, count, dim] and [B, count, T, dim], and turned by rotary positions where
// there are angles [T, half]. `back`: from heads to tokens. A thread VEC pairs.

KERNEL turn(T* out, const T* x, const W* cos, const W* sin, i64 rows, i64 t, i64 count, i64 half, i64 back) {
  i64 packs = half / VEC, total = rows * packs;
  for (i64 n = (i64)blockIdx.x * blockDim.x + threadIdx.x; n < total; n += (i64)gridDim.x * blockDim.x) {
    i64 row = n / packs, i = n % packs * VEC, from, position;
    if (back) {
      from = (row / (count * t) * count + row % count) * t + row / count % t;
      position = row / count % t;
    } else {
      from = (row / (count * t) * t + row % t) * count + row / t % count;
      position = row % t;
    }
    const T* source = x + from * 2 * half + i;
    T* to = out + row * 2 * half + i;
    Pack a = load(source), b = load(source + half);
    if (cos) {
      for (int j = 0; j < VEC; j++) {
        W p = wide(a.at[j]), q = wide(b.at[j]), c = cos[position * half + i + j], s = sin[position * half + i + j];
        narrow(a.at[j], p * c - q * s);
        narrow(b.at[j], q * c + p * s);
      }
    }
    store(to, a);
    store(to + half, b);
  }
}
