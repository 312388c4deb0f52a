// A row's loss, and softmax(z) - onehot(label), or zeros where the label is less than 0: a block a row of `width` logits.
// Nobody waits to hear of a label that there is not: its loss is no number.

KERNEL softmax(T* d, double* loss, const W* z, const i64* labels, i64 width) {
  i64 row = blockIdx.x, label = labels[row];
  z += row * width;
  // The largest so far, and the sum of the exponentials against it.
  W most = z[0], sum = 0;
  for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
    if (z[i] > most) {
      sum = sum * exp_of(most - z[i]) + 1;
      most = z[i];
    } else {
      sum += exp_of(z[i] - most);
    }
  }
  W top = block_max(most);
  W total = block_sum(sum * exp_of(most - top)), inverse = (W)(1.0 / (double)total);
  bool counts = label >= 0 && label < width;
  double of_none = label < 0 ? 0.0 : (double)__uint_as_float(0x7fc00000);
  if (threadIdx.x == 0) loss[row] = counts ? log((double)total) - (double)(z[label] - top) : of_none;
  for (i64 i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC) {
    Pack out;
    for (int j = 0; j < VEC; j++) {
      W p = counts ? exp_of(z[i + j] - top) * inverse : (W)0;
      narrow(out.at[j], i + j == label ? p - (W)1 : p);
    }
    store(d + row * width + i, out);
  }
}
