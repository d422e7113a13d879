/* Products of matrices whose rows are voxels, many more than they have channels, on one thread.
 *
 * All are float32 and contiguous; what is called outputs is a multiple of LANES. Sums run over channels, and over
 * voxels, in a fixed order.
 */

#include "vectors.h"

/* What a product is made besides. */
enum finish { AS_IT_IS, RECTIFIED, ADDED };

/* Voxels and vectors of columns that are computed together: their sums stay in registers. */
enum { VOXELS = 6, COLUMNS = LANES == 16 ? 4 : 2 };

/* For the columns c on, v vectors of them at a time: f(c, v). */
#define FOR_COLUMNS(f)                                                              \
    do {                                                                            \
        whole c = 0;                                                                \
        for (; c + COLUMNS * LANES <= outputs; c += COLUMNS * LANES) f(c, COLUMNS); \
        for (; c < outputs; c += LANES) f(c, 1);                                    \
    } while (0)

/* Of n voxels and v vectors of columns. */
INLINE void product(const float *rows, const float *matrix, const float *bias, float *out, whole inputs, whole outputs,
                    const int n, const int v, const enum finish finish) {
    vector sum[VOXELS][COLUMNS];
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

/* out = rows matrix + bias, or its positive part, or out plus it; without bias where that is null. Rows are
 * count x inputs, the matrix inputs x outputs. */
INLINE void multiply_rows(const float *rows, const float *matrix, const float *bias, float *out, whole count,
                          whole inputs, whole outputs, const enum finish finish) {
#define PRODUCT(n, c, v)                                                                                       \
    product(rows + row * inputs, matrix + (c), bias ? bias + (c) : bias, out + row * outputs + (c), inputs, outputs, n, \
            v, finish)
#define MANY(c, v) PRODUCT(VOXELS, c, v)
#define TWO(c, v) PRODUCT(2, c, v)
#define ONE(c, v) PRODUCT(1, c, v)
    whole row = 0;
    for (; row + VOXELS <= count; row += VOXELS) FOR_COLUMNS(MANY);
    for (; row + 2 <= count; row += 2) FOR_COLUMNS(TWO);
    for (; row < count; row++) FOR_COLUMNS(ONE);
#undef ONE
#undef TWO
#undef MANY
#undef PRODUCT
}

/* Voxels that stay in the cache while all channels are gone through, and channels whose sums stay in registers. */
enum { BLOCK = 64, CHANNELS = 4 };

/* Of n channels and v vectors of columns. */
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

/* matrix += rows^T gradient and, where it is not null, bias += the sum of the gradient's rows: what a product leaves for
 * its parameters. Rows are count x inputs, the gradient is count x outputs. */
INLINE void correlate_rows(const float *rows, const float *gradient, float *matrix, float *bias, whole count,
                           whole inputs, whole outputs) {
    for (whole first = 0; first < count; first += BLOCK) {
        const whole voxels = smaller(BLOCK, count - first);
        const float *from = rows + first * inputs, *arrived = gradient + first * outputs;
#define CORRELATION(n, c, v) \
    correlation(from + k, arrived + (c), matrix + k * outputs + (c), voxels, inputs, outputs, n, v)
#define ALL_CHANNELS(c, v)                                                            \
    do {                                                                              \
        whole k = 0;                                                                  \
        for (; k + CHANNELS <= inputs; k += CHANNELS) CORRELATION(CHANNELS, c, v);    \
        for (; k < inputs; k++) CORRELATION(1, c, v);                                 \
    } while (0)
        FOR_COLUMNS(ALL_CHANNELS);
#undef ALL_CHANNELS
#undef CORRELATION
        for (whole row = 0; bias && row < voxels; row++)
            for (whole c = 0; c < outputs; c += LANES)
                store(bias + c, load(bias + c) + load(arrived + row * outputs + c));
    }
}

/* to += from */
INLINE void add(float *to, const float *from, whole count) {
    for (whole i = 0; i < count; i++) to[i] += from[i];
}
