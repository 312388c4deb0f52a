// dv = gain dy, and the sums of dy y over the rows of a part: a block `part` rows of `width` elements.

KERNEL backward(T* dv, W* sums, const T* dy, const T* y, const W* gain, i64 rows, i64 width, i64 part) {
  i64 first = blockIdx.x * part, last = first + part < rows ? first + part : rows;
  for (i64 i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC) {
    W total[VEC];
    for (int j = 0; j < VEC; j++) total[j] = 0;
    for (i64 row = first; row < last; row++) {
      Pack a = load(dy + row * width + i), b = load(y + row * width + i), out;
      for (int j = 0; j < VEC; j++) {
        narrow(out.at[j], wide(a.at[j]) * gain[i + j]);
        total[j] += wide(a.at[j]) * wide(b.at[j]);
      }
      store(dv + row * width + i, out);
    }
    for (int j = 0; j < VEC; j++) sums[blockIdx.x * width + i + j] = total[j];
  }
}
