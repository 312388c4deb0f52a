// n weights from their codes, two a byte, the first in the high half: book[code] * scale, and the scale of 64 weights is
// map[code] * nested + offset; rounded after each step, as bitsandbytes does. Tables: the book's 16, then the map's 256.

typedef unsigned char u8;

KERNEL dequantise(T* out, const u8* packed, const u8* scales, const float* nested, const float* offset,
                  const float* tables, i64 n) {
  i64 step = (i64)gridDim.x * blockDim.x * VEC;
  for (i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC; i < n; i += step) {
    i64 block = i / 64;
    float scale = tables[16 + scales[block]] * nested[block / 256] + offset[0];
    Pack y;
    for (int j = 0; j < VEC; j++) {
      u8 byte = packed[(i + j) / 2];
      narrow(y.at[j], tables[(i + j) % 2 ? byte & 15 : byte >> 4] * scale);
    }
    store(out + i, y);
  }
}
