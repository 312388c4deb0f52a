// n weights from their codes, two a byte, the first in the high half: book[code] * scale, rounded after each step, as
// bitsandbytes does. A block of weights has one scale: a float, or map[code] * absmax + offset, and 256 codes have one
// absmax. Tables: the book's 16 numbers, then the map's 256.

typedef unsigned char u8;

template <class Scale>
__device__ inline void dequantised(T* out, const u8* packed, const float* tables, i64 size, i64 n, Scale scale_of) {
  i64 step = (i64)gridDim.x * blockDim.x * VEC;
  for (i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC; i < n; i += step) {
    float scale = scale_of(i / size);
    Pack y;
    for (int j = 0; j < VEC; j++) {
      u8 byte = packed[(i + j) / 2];
      narrow(y.at[j], tables[(i + j) % 2 ? byte & 15 : byte >> 4] * scale);
    }
    store(out + i, y);
  }
}

KERNEL plain(T* out, const u8* packed, const float* tables, const float* absmax, i64 size, i64 n) {
  dequantised(out, packed, tables, size, n, [=](i64 block) { return absmax[block]; });
}

KERNEL nested(T* out, const u8* packed, const float* tables, const u8* codes, const float* absmax,
              const float* offset, i64 size, i64 n) {
  dequantised(out, packed, tables, size, n,
              [=](i64 block) { return tables[16 + codes[block]] * absmax[block / 256] + offset[0]; });
}
