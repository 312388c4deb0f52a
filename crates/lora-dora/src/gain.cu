// A row's gain m / n and its slope 1 / n; 1 and 0 for a row of zeros.

KERNEL gain(W* value, W* slope, const W* magnitude, const W* norms, i64 rows) {
  i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (i >= rows) return;
  W n = norms[i];
  value[i] = n == 0 ? 1 : magnitude[i] / n;
  slope[i] = n == 0 ? 0 : 1 / n;
}
