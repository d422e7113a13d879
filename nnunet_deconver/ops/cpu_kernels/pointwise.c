/* Products of matrices whose rows are voxels, many more than they have channels.
 *
 * All are float32, contiguous, and every row has a multiple of LANES columns where it says "outputs". Sums run over
 * channels in a fixed order, and over voxels in an order that depends on `threads` alone.
 */

#include <stdlib.h>

#include "vectors.h"

/* What a product is, besides itself. */
enum finish { AS_IT_IS, RECTIFIED, ADDED };

/* Voxels and vectors of columns that are computed together: their sums stay in registers. */
enum { ROWS = 6, COLUMNS = LANES == 16 ? 4 : 2 };

/* out = rows matrix + bias, of n voxels and v vectors of columns */
INLINE void product(const float *rows, const float *matrix, const float *bias, float *out, whole inputs, whole outputs,
                    const int n, const int v, const enum finish finish) {
    vector sum[ROWS][COLUMNS];
    for (int j = 0; j < v; j++) {
        vector start = {0};
        if (bias) start = load(bias + j * LANES);
        for (int i = 0; i < n; i++) sum[i][j] = start;
    }
    for (whole k = 0; k < inputs; k++) {
        vector weights[COLUMNS];
        for (int j = 0; j < v; j++) weights[j] = load(matrix + k * outputs + j * LANES);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < v; j++) sum[i][j] += rows[i * inputs + k] * weights[j];
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < v; j++) {
            float *to = out + i * outputs + j * LANES;
            if (finish == RECTIFIED) sum[i][j] = unless(sum[i][j] < 0, sum[i][j]);
            if (finish == ADDED) sum[i][j] += load(to);
            store(to, sum[i][j]);
        }
}

#define FOR_COLUMNS(f)                                                              \
    do {                                                                            \
        whole c = 0;                                                                \
        for (; c + COLUMNS * LANES <= outputs; c += COLUMNS * LANES) f(c, COLUMNS); \
        for (; c < outputs; c += LANES) f(c, 1);                                    \
    } while (0)

INLINE void multiply_as(const float *rows, const float *matrix, const float *bias, float *out, whole count,
                        whole inputs, whole outputs, int threads, const enum finish finish) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (whole block = 0; block < (count + ROWS - 1) / ROWS; block++) {
        const whole end = smaller(count, (block + 1) * ROWS);
#define PRODUCT(i, n, c, v)                                                                                       \
    product(rows + (i) * inputs, matrix + (c), bias ? bias + (c) : bias, out + (i) * outputs + (c), inputs, outputs, n, \
            v, finish)
#define SOME(c, v) PRODUCT(block * ROWS, ROWS, c, v)
#define ONE(c, v) PRODUCT(row, 1, c, v)
        if (end == (block + 1) * ROWS) FOR_COLUMNS(SOME);
        else
            for (whole row = block * ROWS; row < end; row++) FOR_COLUMNS(ONE);
#undef ONE
#undef SOME
#undef PRODUCT
    }
}

/* out = rows matrix + bias, or its positive part, or out plus it. Rows are count x inputs, matrix is inputs x outputs,
 * bias has outputs entries or is null. */
void multiply(const float *rows, const float *matrix, const float *bias, float *out, whole count, whole inputs,
              whole outputs, int finish, int threads) {
    if (finish == RECTIFIED) multiply_as(rows, matrix, bias, out, count, inputs, outputs, threads, RECTIFIED);
    else if (finish == ADDED) multiply_as(rows, matrix, bias, out, count, inputs, outputs, threads, ADDED);
    else multiply_as(rows, matrix, bias, out, count, inputs, outputs, threads, AS_IT_IS);
}

/* Voxels that stay in the cache while all channels are gone through, and channels whose sums stay in registers. */
enum { BLOCK = 64, CHANNELS = 4 };

/* sums += rows^T gradient, of `count` voxels, n channels and v vectors of columns */
INLINE void correlation(const float *rows, const float *gradient, float *sums, whole count, whole inputs, whole outputs,
                        const int n, const int v) {
    vector sum[CHANNELS][COLUMNS];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < v; j++) sum[i][j] = load(sums + i * outputs + j * LANES);
    for (whole row = 0; row < count; row++) {
        vector arrived[COLUMNS];
        for (int j = 0; j < v; j++) arrived[j] = load(gradient + row * outputs + j * LANES);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < v; j++) sum[i][j] += rows[row * inputs + i] * arrived[j];
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < v; j++) store(sums + i * outputs + j * LANES, sum[i][j]);
}

/* matrix += rows^T gradient and, if it is not null, bias += the sum of the gradient's rows: what the product above
 * leaves for its parameters. Rows are count x inputs, gradient is count x outputs. Returns 0, or 1 without memory. */
int correlate_rows(const float *rows, const float *gradient, float *matrix, float *bias, whole count, whole inputs,
                   whole outputs, int threads) {
    const whole size = (inputs + 1) * outputs;
    float *parts = calloc(threads * size, sizeof(float));
    if (!parts) return 1;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        float *sums = parts + part * size, *of_bias = sums + inputs * outputs;
        for (whole first = count * part / threads; first < count * (part + 1) / threads; first += BLOCK) {
            const whole voxels = smaller(BLOCK, count * (part + 1) / threads - first);
            const float *from = rows + first * inputs, *arrived = gradient + first * outputs;
#define CORRELATION(k, n, c, v) \
    correlation(from + (k), arrived + (c), sums + (k) * outputs + (c), voxels, inputs, outputs, n, v)
#define CORRELATE(c, v)                                                         \
    do {                                                                        \
        whole k = 0;                                                            \
        for (; k + CHANNELS <= inputs; k += CHANNELS) CORRELATION(k, CHANNELS, c, v); \
        for (; k < inputs; k++) CORRELATION(k, 1, c, v);                        \
    } while (0)
            FOR_COLUMNS(CORRELATE);
#undef CORRELATE
#undef CORRELATION
            for (whole row = 0; bias && row < voxels; row++)
                for (whole c = 0; c < outputs; c += LANES)
                    store(of_bias + c, load(of_bias + c) + load(arrived + row * outputs + c));
        }
    }
    for (int part = 0; part < threads; part++) {
        const float *sums = parts + part * size;
        for (whole i = 0; i < inputs * outputs; i++) matrix[i] += sums[i];
        for (whole c = 0; bias && c < outputs; c++) bias[c] += sums[inputs * outputs + c];
    }
    free(parts);
    return 0;
}
