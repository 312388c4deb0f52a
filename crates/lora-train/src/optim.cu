// AdamW over n numbers; the gradient is zeroed on the way.

KERNEL step(T* p, T* g, T* m, T* v, i64 n, double decay, double first, double beta2, double second, double root,
            double eps, double rate) {
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
    W x = wide(g[i]), a = wide(m[i]), b = wide(v[i]);
    a += (x - a) * (W)first;
    b = b * (W)beta2 + (W)second * x * x;
    narrow(m[i], a);
    narrow(v[i], b);
    narrow(p[i], wide(p[i]) * (W)decay - (W)rate * (a / ((W)sqrt((double)b) / (W)root + (W)eps)));
    narrow(g[i], 0);
  }
}
