// n values from ggml's blocks: what legacy.rs and k_quants.rs compute, product by product. A thread VEC neighbours, which
// share their scales.

typedef unsigned char u8;
typedef signed char i8;

__device__ inline float half_at(const u8* b) {
  unsigned bits = b[0] | (unsigned)b[1] << 8, sign = (bits & 0x8000) << 16;
  unsigned exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 0) {
    float x = (float)fraction * 5.9604644775390625e-08f;
    return sign ? -x : x;
  }
  return __uint_as_float(sign | (exponent == 31 ? 0xff : exponent + 112) << 23 | fraction << 13);
}

// `values_of(block, at)` gives the value of each place in the block, for places near `at`.
template <int SIZE, int VALUES, class Of>
__device__ inline void each(T* out, const u8* bytes, i64 n, Of values_of) {
  i64 step = (i64)gridDim.x * blockDim.x * VEC;
  for (i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC; i < n; i += step) {
    int at = i % VALUES;
    auto value = values_of(bytes + i / VALUES * SIZE, at);
    Pack y;
    for (int j = 0; j < VEC; j++) narrow(y.at[j], value(at + j));
    store(out + i, y);
  }
}

__device__ inline int nibble(const u8* q, int l) { return l < 16 ? q[l] & 15 : q[l - 16] >> 4; }
__device__ inline int fifth(const u8* high, int l) { return (high[l / 8] >> (l % 8) & 1) << 4; }

KERNEL q4_0(T* out, const u8* bytes, i64 n) {
  each<18, 32>(out, bytes, n, [](const u8* b, int) {
    float d = half_at(b);
    return [=](int l) { return d * (float)(nibble(b + 2, l) - 8); };
  });
}

KERNEL q4_1(T* out, const u8* bytes, i64 n) {
  each<20, 32>(out, bytes, n, [](const u8* b, int) {
    float d = half_at(b), m = half_at(b + 2);
    return [=](int l) { return d * (float)nibble(b + 4, l) + m; };
  });
}

KERNEL q5_0(T* out, const u8* bytes, i64 n) {
  each<22, 32>(out, bytes, n, [](const u8* b, int) {
    float d = half_at(b);
    return [=](int l) { return d * (float)((nibble(b + 6, l) | fifth(b + 2, l)) - 16); };
  });
}

KERNEL q5_1(T* out, const u8* bytes, i64 n) {
  each<24, 32>(out, bytes, n, [](const u8* b, int) {
    float d = half_at(b), m = half_at(b + 2);
    return [=](int l) { return d * (float)(nibble(b + 8, l) | fifth(b + 4, l)) + m; };
  });
}

KERNEL q8_0(T* out, const u8* bytes, i64 n) {
  each<34, 32>(out, bytes, n, [](const u8* b, int) {
    float d = half_at(b);
    return [=](int l) { return d * (float)(i8)b[2 + l]; };
  });
}

__device__ inline float iq4_nl_book(int q) {
  const i8 book[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return book[q];
}

KERNEL iq4_nl(T* out, const u8* bytes, i64 n) {
  each<18, 32>(out, bytes, n, [](const u8* b, int) {
    float d = half_at(b);
    return [=](int l) { return d * iq4_nl_book(nibble(b + 2, l)); };
  });
}

// The k-quants: 256 values in groups of 16 or 32, whose scales are small whole numbers times an f16.

__device__ inline int two(const u8* q, int v) { return q[v / 128 * 32 + v % 32] >> (v / 32 % 4 * 2) & 3; }

KERNEL q2_k(T* out, const u8* bytes, i64 n) {
  each<84, 256>(out, bytes, n, [](const u8* b, int at) {
    u8 s = b[at / 16];
    float d = half_at(b + 80) * (float)(s & 15), m = half_at(b + 82) * (float)(s >> 4);
    return [=](int v) { return d * (float)two(b + 16, v) - m; };
  });
}

KERNEL q3_k(T* out, const u8* bytes, i64 n) {
  each<110, 256>(out, bytes, n, [](const u8* b, int at) {
    const u8* s = b + 96;
    int i = at / 16, low = s[i % 8] >> (i / 8 * 4) & 15, high = s[8 + i % 4] >> (i / 4 * 2) & 3;
    float d = half_at(b + 108) * (float)((low | high << 4) - 32);
    return [=](int v) { return d * (float)((two(b + 32, v) | (b[v % 32] >> (v / 32) & 1) << 2) - 4); };
  });
}

// Scale or minimum number g of Q4_K and Q5_K, 6 bits: `first` is where its kind begins, `low` its low half from g = 4 on.
__device__ inline int six(const u8* s, int g, int first, int low) {
  return g < 4 ? s[first + g] & 63 : (low & 15) | (s[first + g - 4] >> 2 & 48);
}

template <class Codes>
__device__ inline auto scaled(const u8* b, int g, Codes code) {
  const u8* s = b + 4;
  float d = half_at(b) * (float)six(s, g, 0, s[8 + g % 4]), m = half_at(b + 2) * (float)six(s, g, 4, s[8 + g % 4] >> 4);
  return [=](int v) { return d * (float)code(v) - m; };
}

KERNEL q4_k(T* out, const u8* bytes, i64 n) {
  each<144, 256>(out, bytes, n, [](const u8* b, int at) {
    int g = at / 32;
    return scaled(b, g, [=](int v) { return b[16 + g / 2 * 32 + v % 32] >> (g % 2 * 4) & 15; });
  });
}

KERNEL q5_k(T* out, const u8* bytes, i64 n) {
  each<176, 256>(out, bytes, n, [](const u8* b, int at) {
    int g = at / 32;
    return scaled(b, g, [=](int v) {
      int l = v % 32;
      return (b[48 + g / 2 * 32 + l] >> (g % 2 * 4) & 15) | (b[16 + l] >> g & 1) << 4;
    });
  });
}

KERNEL q6_k(T* out, const u8* bytes, i64 n) {
  each<210, 256>(out, bytes, n, [](const u8* b, int at) {
    float d = half_at(b + 208) * (float)(i8)b[192 + at / 16];
    int g = at / 32;
    return [=](int v) {
      int l = v % 32, low = b[g / 4 * 64 + g % 2 * 32 + l] >> (g % 4 / 2 * 4) & 15;
      return d * (float)((low | (b[128 + g / 4 * 32 + l] >> (g % 4 * 2) & 3) << 4) - 32);
    };
  });
}
