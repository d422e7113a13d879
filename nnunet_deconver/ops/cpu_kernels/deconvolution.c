/* The convolutions of one update of nonnegative deconvolution, and what is made of them voxel by voxel, on a CPU.
 *
 * Formulas and names: triton_update.py. Tensors are those of one image, float32, contiguous, channels last:
 *
 *   image   depth x height x width x channels
 *   source  some planes of depth x height x width x ratio x channels: a slab
 *   filter  kernel x ratio x channels
 *
 * so that what belongs to one channel never meets another, and a vector holds LANES channels of one voxel. Images are
 * whole; of a slab, `planes` says where along the depth it starts and, for those that take `first` and `end`, these say
 * which planes are computed. Beyond the image all values are zero.
 *
 * Sums run over the taps in a fixed order, and over voxels in an order that depends on `threads` alone.
 */

#include <stdlib.h>

#include "vectors.h"

typedef struct {
    whole depth, height, width, channels, ratio;
    whole kernel[3]; /* odd */
} geometry;

/* To be raised, with _INTERFACE in cpu_kernels/__init__.py, when the arguments of a function change. */
int interface(void) { return 2; }

/* Voxels of a row that are computed together: their sums stay in registers while a weight is loaded once. */
enum { TILE = 6 };

/* first second / denominator, which overflows or vanishes on the way only where the result does: a division by less than
 * 1 is for the smaller factor, another for the larger. So neither goes further from 1 than the result. */
INLINE vector quotient(vector first, vector second, vector denominator) {
    const bits divides_second = (magnitude(first) < magnitude(second)) ^ (denominator < 1);
    const bits exchanged = ((bits)first ^ (bits)second) & divides_second;
    const vector divided = (vector)((bits)first ^ exchanged), other = (vector)((bits)second ^ exchanged);
    return divided / denominator * other;
}

/* The taps `from` to `to` of an axis that lie inside the image for the voxel `at`. */
INLINE void taps(whole at, whole size, whole kernel, whole *from, whole *to) {
    *from = larger(0, kernel / 2 - at);
    *to = smaller(kernel, size + kernel / 2 - at);
}

/* Calls f(x, n) for the voxels x to x + n - 1 of a row: n > 1 only where all taps lie inside. */
#define ALONG_ROW(g, f)                                              \
    do {                                                             \
        const whole border = (g)->kernel[2] / 2;                     \
        const whole inner = smaller(border, (g)->width);             \
        const whole outer = larger((g)->width - border, inner);      \
        whole x = 0;                                                 \
        for (; x < inner; x++) f(x, 1);                              \
        for (; x + TILE <= outer; x += TILE) f(x, TILE);             \
        for (; x + 2 <= outer; x += 2) f(x, 2);                      \
        for (; x < (g)->width; x++) f(x, 1);                         \
    } while (0)

/* source (*) filter, of n voxels and LANES channels */
INLINE void gather(const geometry *g, const float *source, whole planes, const float *filter, float *image, whole z,
                   whole y, whole x, whole c, const int n) {
    const whole sources = g->channels * g->ratio;
    whole z0, z1, y0, y1, x0 = 0, x1 = g->kernel[2];
    taps(z, g->depth, g->kernel[0], &z0, &z1);
    taps(y, g->height, g->kernel[1], &y0, &y1);
    if (n == 1) taps(x, g->width, g->kernel[2], &x0, &x1);
    vector sum[TILE];
    for (int i = 0; i < n; i++) sum[i] = (vector){0};
    for (whole dz = z0; dz < z1; dz++)
        for (whole dy = y0; dy < y1; dy++) {
            const whole plane = z + dz - g->kernel[0] / 2 - planes, row = y + dy - g->kernel[1] / 2;
            const whole voxel = (plane * g->height + row) * g->width + x - g->kernel[2] / 2;
            for (whole dx = x0; dx < x1; dx++) {
                const float *weights = filter + ((dz * g->kernel[1] + dy) * g->kernel[2] + dx) * sources + c;
                const float *values = source + (voxel + dx) * sources + c;
                for (whole r = 0; r < g->ratio; r++) {
                    const vector weight = load(weights + r * g->channels);
                    for (int i = 0; i < n; i++) sum[i] += weight * load(values + r * g->channels + i * sources);
                }
            }
        }
    float *out = image + ((z * g->height + y) * g->width + x) * g->channels + c;
    for (int i = 0; i < n; i++) store(out + i * g->channels, sum[i]);
}

/* image = source (*) filter, in the planes `first` to `end`. */
void gather_source(const geometry *g, const float *source, whole planes, const float *filter, float *image,
                          whole first, whole end, int threads) {
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (whole z = first; z < end; z++)
        for (whole y = 0; y < g->height; y++)
            for (whole c = 0; c < g->channels; c += LANES) {
#define GATHER(x, n) gather(g, source, planes, filter, image, z, y, x, c, n)
                ALONG_ROW(g, GATHER);
#undef GATHER
            }
}

/* What the adjoint convolutions of images are made to serve. */
enum purpose { UPDATE, QUOTIENT_GRADIENTS, SOURCE_GRADIENT };

INLINE void adjoint(const geometry *g, const float *const *images, const float *filter, float eps, float *source,
                    const float *upstream, float *gradient, float *updated, whole planes, whole first, whole z,
                    whole y, whole x, whole c, const int n, const enum purpose purpose) {
    const int count = purpose == SOURCE_GRADIENT ? 3 : 2;
    const whole sources = g->channels * g->ratio;
    whole z0, z1, y0, y1, x0 = 0, x1 = g->kernel[2];
    taps(z, g->depth, g->kernel[0], &z0, &z1);
    taps(y, g->height, g->kernel[1], &y0, &y1);
    if (n == 1) taps(x, g->width, g->kernel[2], &x0, &x1);
    for (whole r = 0; r < g->ratio; r++) {
        vector sum[3][TILE];
        for (int k = 0; k < count; k++)
            for (int i = 0; i < n; i++) sum[k][i] = (vector){0};
        for (whole dz = z0; dz < z1; dz++)
            for (whole dy = y0; dy < y1; dy++) {
                const whole plane = z + dz - g->kernel[0] / 2, row = y + dy - g->kernel[1] / 2;
                const whole voxel = (plane * g->height + row) * g->width + x - g->kernel[2] / 2;
                /* The adjoint's filter is the filter flipped. */
                const whole tap = ((g->kernel[0] - 1 - dz) * g->kernel[1] + g->kernel[1] - 1 - dy) * g->kernel[2];
                const float *weights = filter + (tap + g->kernel[2] - 1) * sources + r * g->channels + c;
                for (whole dx = x0; dx < x1; dx++) {
                    const vector weight = load(weights - dx * sources);
                    const whole at = (voxel + dx) * g->channels + c;
                    for (int k = 0; k < count; k++)
                        for (int i = 0; i < n; i++) sum[k][i] += weight * load(images[k] + at + i * g->channels);
                }
            }
        const whole voxel = ((z - planes) * g->height + y) * g->width + x;
        for (int i = 0; i < n; i++) {
            const whole here = ((voxel + i) * g->ratio + r) * g->channels + c;
            const vector numerator = sum[0][i] + eps, denominator = sum[1][i] + eps;
            if (purpose == UPDATE) {
                store(source + here, quotient(load(source + here), numerator, denominator));
                continue;
            }
            const whole there = here - (first - planes) * g->height * g->width * sources;
            const vector arrived = load(upstream + there);
            if (purpose == QUOTIENT_GRADIENTS) {
                const vector s = load(source + here), result = quotient(s, numerator, denominator);
                store(updated + there, result);
                store(gradient + here, quotient(arrived, s, denominator));
                store(source + here, -quotient(arrived, result, denominator));
            } else {
                const vector found = quotient(arrived, numerator, denominator) + sum[2][i];
                store(gradient + there, source ? unless(load(source + here) <= 0, found) : found);
            }
        }
    }
}

#define ADJOINT(x, n) \
    adjoint(g, images, filter, eps, source, upstream, gradient, updated, planes, first, z, y, x, c, n, PURPOSE)
#define FOR_EACH_ROW                                                                        \
    _Pragma("omp parallel for collapse(2) num_threads(threads) schedule(static)")           \
    for (whole z = first; z < end; z++)                                                     \
        for (whole y = 0; y < g->height; y++)                                               \
            for (whole c = 0; c < g->channels; c += LANES) ALONG_ROW(g, ADJOINT)

/* source <- source N / D: the update. */
void update_source(const geometry *g, const float *image, const float *reconstruction, const float *filter, float eps,
                   float *source, whole planes, whole first, whole end, int threads) {
    const float *images[] = {image, reconstruction}, *upstream = 0;
    float *gradient = 0, *updated = 0;
#define PURPOSE UPDATE
    FOR_EACH_ROW;
#undef PURPOSE
}

/* gradient <- that of N, source <- that of D, updated <- the update; from upstream, the gradient of the
 * update. Upstream and updated hold the planes that are computed. */
void differentiate_quotient(const geometry *g, const float *image, const float *reconstruction, const float *filter,
                            float eps, const float *upstream, float *source, float *gradient, float *updated,
                            whole planes, whole first, whole end, int threads) {
    const float *images[] = {image, reconstruction};
#define PURPOSE QUOTIENT_GRADIENTS
    FOR_EACH_ROW;
#undef PURPOSE
}

/* gradient <- that of the source; from upstream, the gradient of the update. Both hold the planes that are computed, as
 * does source, if it is there: then it has been rectified, and gradient is that before. */
void differentiate_source(const geometry *g, const float *image, const float *reconstruction,
                          const float *reconstruction_gradient, const float *filter, float eps, const float *upstream,
                          float *source, float *gradient, whole first, whole end, int threads) {
    const float *images[] = {image, reconstruction, reconstruction_gradient};
    float *updated = 0;
    const whole planes = first;
#define PURPOSE SOURCE_GRADIENT
    FOR_EACH_ROW;
#undef PURPOSE
}

/* Adds source[v] image[v + tap] over a row to `sums`, for `rs` ratios and for `ds` taps from dx on. */
INLINE void correlate_row(const geometry *g, const float *image, const float *source, float *sums, whole dx,
                          const int rs, const int ds) {
    const whole sources = g->channels * g->ratio, border = g->kernel[2] / 2;
    /* Between these all taps lie inside. */
    const whole from = smaller(larger(0, border - dx), g->width);
    const whole to = larger(from, smaller(g->width, g->width + border - dx - ds + 1));
    vector sum[4][3];
    for (int r = 0; r < rs; r++)
        for (int d = 0; d < ds; d++) sum[r][d] = (vector){0};
    for (whole x = 0; x < g->width; x++) {
        if (x == from) {
            for (; x < to; x++) {
                vector values[3];
                for (int d = 0; d < ds; d++) values[d] = load(image + (x + dx + d - border) * g->channels);
                for (int r = 0; r < rs; r++) {
                    const vector weight = load(source + x * sources + r * g->channels);
                    for (int d = 0; d < ds; d++) sum[r][d] += weight * values[d];
                }
            }
            if (x == g->width) break;
        }
        for (int d = 0; d < ds; d++) {
            const whole other = x + dx + d - border;
            if (other < 0 || other >= g->width) continue;
            for (int r = 0; r < rs; r++)
                sum[r][d] += load(source + x * sources + r * g->channels) * load(image + other * g->channels);
        }
    }
    for (int d = 0; d < ds; d++)
        for (int r = 0; r < rs; r++) {
            float *to_add = sums + d * sources + r * g->channels;
            store(to_add, load(to_add) + sum[r][d]);
        }
}

/* Adds to the gradient of the filter, flipped, what an image and the gradient of its adjoint convolution contribute:
 * sum_v image(v + tap) source(v), over the planes `first` to `end`. Returns 0, or 1 without memory. */
int correlate(const geometry *g, const float *image, const float *source, whole planes, float *flipped,
                     whole first, whole end, int threads) {
    const whole sources = g->channels * g->ratio;
    const whole size = g->kernel[0] * g->kernel[1] * g->kernel[2] * sources, rows = (end - first) * g->height;
    float *parts = calloc(threads * size, sizeof(float));
    if (!parts) return 1;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++)
        for (whole line = rows * part / threads; line < rows * (part + 1) / threads; line++) {
            const whole z = first + line / g->height, y = line % g->height;
            whole z0, z1, y0, y1;
            taps(z, g->depth, g->kernel[0], &z0, &z1);
            taps(y, g->height, g->kernel[1], &y0, &y1);
            const float *from = source + ((z - planes) * g->height + y) * g->width * sources;
            for (whole c = 0; c < g->channels; c += LANES)
                for (whole dz = z0; dz < z1; dz++)
                    for (whole dy = y0; dy < y1; dy++) {
                        const whole plane = z + dz - g->kernel[0] / 2, row = y + dy - g->kernel[1] / 2;
                        const float *other = image + (plane * g->height + row) * g->width * g->channels + c;
                        float *sums = parts + part * size + (dz * g->kernel[1] + dy) * g->kernel[2] * sources + c;
#define CORRELATE(rs, ds) \
    correlate_row(g, other, from + r * g->channels + c, sums + dx * sources + r * g->channels, dx, rs, ds)
                        for (whole dx = 0, ds; dx < g->kernel[2]; dx += ds) {
                            ds = g->kernel[2] - dx >= 3 ? 3 : 1;
                            for (whole r = 0, rs; r < g->ratio; r += rs) {
                                rs = g->ratio - r >= 4 ? 4 : 1;
                                if (ds == 3 && rs == 4) CORRELATE(4, 3);
                                else if (ds == 3) CORRELATE(1, 3);
                                else if (rs == 4) CORRELATE(4, 1);
                                else CORRELATE(1, 1);
                            }
                        }
#undef CORRELATE
                    }
        }
    for (int part = 0; part < threads; part++)
        for (whole i = 0; i < size; i++) flipped[i] += parts[part * size + i];
    free(parts);
    return 0;
}
