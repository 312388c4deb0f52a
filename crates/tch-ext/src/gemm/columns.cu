// y times a factor for each column, rounded once: a block `part` rows of a tile of columns, a thread VEC of them.

KERNEL scale(T* y, const W* factors, i64 rows, i64 width, i64 part) {
  i64 span = blockDim.x * VEC, tiles = (width + span - 1) / span;
  i64 first = blockIdx.x / tiles * part, i = blockIdx.x % tiles * span + threadIdx.x * VEC;
  i64 last = first + part < rows ? first + part : rows;
  if (i >= width) return;
  W factor[VEC];
  for (int j = 0; j < VEC; j++) factor[j] = factors[i + j];
  for (i64 row = first; row < last; row++) {
    Pack a = load(y + row * width + i);
    for (int j = 0; j < VEC; j++) narrow(a.at[j], wide(a.at[j]) * factor[j]);
    store(y + row * width + i, a);
  }
}
