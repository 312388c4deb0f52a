// dv = gain dy, and the sums of dy y over the rows of a part: a block `part` rows of a tile of columns, a thread VEC of
// them.

KERNEL backward(T* dv, W* sums, const T* dy, const T* y, const W* gain, i64 rows, i64 width, i64 part) {
  i64 span = blockDim.x * VEC, tiles = (width + span - 1) / span, at = blockIdx.x / tiles;
  i64 first = at * part, last = first + part < rows ? first + part : rows;
  i64 i = blockIdx.x % tiles * span + threadIdx.x * VEC;
  if (i >= width) return;
  W total[VEC], factor[VEC];
  for (int j = 0; j < VEC; j++) {
    total[j] = 0;
    factor[j] = gain[i + j];
  }
  for (i64 row = first; row < last; row++) {
    Pack a = load(dy + row * width + i), b = load(y + row * width + i), out;
    for (int j = 0; j < VEC; j++) {
      narrow(out.at[j], wide(a.at[j]) * factor[j]);
      total[j] += wide(a.at[j]) * wide(b.at[j]);
    }
    store(dv + row * width + i, out);
  }
  for (int j = 0; j < VEC; j++) sums[at * width + i + j] = total[j];
}

// The magnitude's gradient of each column, from the sums of its parts: times the slope, and where the sums are of what
// came out of the gain, without it.
KERNEL finish(W* dm, const W* sums, const W* slope, const W* gain, i64 parts, i64 width) {
  i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (i >= width) return;
  W total = 0;
  for (i64 part = 0; part < parts; part++) total += sums[part * width + i];
  dm[i] = (gain ? total / gain[i] : total) * slope[i];
}

// A gain that is smaller than `least` as `least`.
KERNEL floored(W* out, const W* gain, i64 width, double least) {
  i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (i >= width) return;
  W g = gain[i], size = g < 0 ? -g : g;
  out[i] = size < (W)least ? (W)least : g;
}
