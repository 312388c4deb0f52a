// The norm of each row of W + s B A, from `squares` = |W|^2, `wa` = W A^T and `gram` = A A^T: a block a row.

KERNEL row_norms(W* norms, const W* squares, const W* wa, const W* b, const W* gram, i64 rank, double scale) {
  i64 row = blockIdx.x;
  W s = (W)scale, sum = 0;
  wa += row * rank;
  b += row * rank;
  for (i64 j = threadIdx.x; j < rank; j += blockDim.x) {
    W own = 0;
    for (i64 k = 0; k < rank; k++) own += b[k] * gram[k * rank + j];
    sum += (2 * wa[j] + s * own) * b[j];
  }
  sum = block_sum(sum);
  W whole = squares[row] + s * sum;
  if (threadIdx.x == 0) norms[row] = (W)sqrt((double)(whole > 0 ? whole : 0));
}
