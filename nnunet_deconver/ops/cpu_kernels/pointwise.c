/* The products of products.h on several threads; sums over voxels run in an order that depends on `threads` alone. */

#include <stdlib.h>

#include "products.h"

/* out = rows matrix + bias, or its positive part, or out plus it, as `finish` says. */
void multiply(const float *rows, const float *matrix, const float *bias, float *out, whole count, whole inputs,
              whole outputs, int finish, int threads) {
    const whole blocks = (count + VOXELS - 1) / VOXELS;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        const whole first = blocks * part / threads * VOXELS;
        const whole end = smaller(blocks * (part + 1) / threads * VOXELS, count);
#define PART(finish)                                                                                             \
    multiply_rows(rows + first * inputs, matrix, bias, out + first * outputs, end - first, inputs, outputs, finish)
        if (finish == RECTIFIED) PART(RECTIFIED);
        else if (finish == ADDED) PART(ADDED);
        else PART(AS_IT_IS);
#undef PART
    }
}

/* matrix += rows^T gradient, bias += the sum of the gradient's rows, where it is not null. Returns 0, or 1 without
 * memory. */
int add_gradients(const float *rows, const float *gradient, float *matrix, float *bias, whole count, whole inputs,
                  whole outputs, int threads) {
    const whole size = (inputs + 1) * outputs;
    float *parts = calloc(threads * size, sizeof(float));
    if (!parts) return 1;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        const whole first = count * part / threads, end = count * (part + 1) / threads;
        float *sums = parts + part * size;
        correlate_rows(rows + first * inputs, gradient + first * outputs, sums, bias ? sums + inputs * outputs : bias,
                       end - first, inputs, outputs);
    }
    for (int part = 0; part < threads; part++) {
        add(matrix, parts + part * size, inputs * outputs);
        if (bias) add(bias, parts + part * size + inputs * outputs, outputs);
    }
    free(parts);
    return 0;
}
