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
