/* One update of nonnegative deconvolution with a group per channel, forward and backward, on a CPU.
 *
 * Formulas and names: triton_update.py. Tensors are float32, contiguous, channels last:
 *
 *   image    images x depth x height x width x channels
 *   source   images x depth x height x width x ratio x channels
 *   filter   kernel x ratio x channels
 *
 * so that what belongs to one channel never meets another, and a vector holds LANES channels of one voxel.
 *
 * The source has several times the channels of the image, and reading and writing it in memory would take more time than
 * the arithmetic. So it exists in bands only, some rows of one plane that stay in the cache: a projection makes them
 * of the image, and of the updated ones another makes what is wanted, forward and, again, backward. Whole are only
 * tensors of the image's size. A band adds what it gives to the rows around it; so that no two threads add to the same,
 * each has planes of its own, and makes again, for those, what lies within half a kernel beyond them.
 *
 * Beyond the image all values are zero. Sums run over the taps in a fixed order, and over voxels in an order that
 * depends on `threads` alone.
 */

#include <stdlib.h>
#include <string.h>

#include "products.h"

typedef struct {
    whole images, depth, height, width, channels, ratio, outputs;
    whole kernel[3]; /* odd */
    float eps;
    const float *image, *filter;
    const float *source; /* unless it is made of the image by what follows, otherwise null: */
    const float *source_matrix, *source_bias, *source_adjoint; /* channels x sources, its bias, its transpose */
    const float *out_matrix, *out_bias, *out_adjoint; /* likewise, sources x outputs; or null for the source itself */
} problem;

/* To be raised, with _INTERFACE in __init__.py, when the arguments of a function change. */
int interface(void) { return 3; }

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

/* Calls f(x, n) for the voxels x to x + n - 1 of a row, n being `many` or 1: many only where all taps lie inside. */
#define ALONG_ROW(p, f, many)                                    \
    do {                                                         \
        const whole border = (p)->kernel[2] / 2;                 \
        const whole inner = smaller(border, (p)->width);         \
        const whole outer = larger((p)->width - border, inner);  \
        whole x = 0;                                             \
        for (; x < inner; x++) f(x, 1);                          \
        for (; x + (many) <= outer; x += (many)) f(x, many);     \
        for (; x < (p)->width; x++) f(x, 1);                     \
    } while (0)

/* Voxels of a row that are computed together, and widths of kernels known to the compiler: what fits its registers. */
enum { GATHERED = LANES == 16 ? 8 : 4, WIDEST = 5 };

/* Adds to n voxels of a row of an image, LANES channels of them, what a row of the source gives them by the taps of a row
 * of the filter; `wide` is the width of the kernel where the compiler knows it, else 0. */
INLINE void gather(const problem *p, const float *source, const float *weights, float *image, whole x, const int n,
                   const int wide) {
    const whole sources = p->channels * p->ratio;
    whole from = 0, to = p->kernel[2];
    if (n == 1) taps(x, p->width, p->kernel[2], &from, &to);
    vector sum[GATHERED];
    for (int i = 0; i < n; i++) sum[i] = load(image + (x + i) * p->channels);
    const float *values = source + (x - p->kernel[2] / 2) * sources;
    for (whole r = 0; r < p->ratio; r++, weights += p->channels, values += p->channels) {
        if (wide && n > 1) {
            vector value[GATHERED + WIDEST - 1];
            for (int i = 0; i < n + wide - 1; i++) value[i] = load(values + i * sources);
            for (int dx = 0; dx < wide; dx++) {
                const vector weight = load(weights + dx * sources);
                for (int i = 0; i < n; i++) sum[i] += weight * value[i + dx];
            }
        } else
            for (whole dx = from; dx < to; dx++) {
                const vector weight = load(weights + dx * sources);
                for (int i = 0; i < n; i++) sum[i] += weight * load(values + (dx + i) * sources);
            }
    }
    for (int i = 0; i < n; i++) store(image + (x + i) * p->channels, sum[i]);
}

/* Adds to the planes `first` to `end` of an image what a row of the source, (z, y), gives them: source (*) filter. */
static void gather_row(const problem *p, const float *source, float *image, whole first, whole end, whole z, whole y) {
    const whole sources = p->channels * p->ratio;
    for (whole c = 0; c < p->channels; c += LANES)
        for (whole dz = 0; dz < p->kernel[0]; dz++) {
            const whole plane = z - dz + p->kernel[0] / 2;
            if (plane < first || plane >= end) continue;
            for (whole dy = 0; dy < p->kernel[1]; dy++) {
                const whole row = y - dy + p->kernel[1] / 2;
                if (row < 0 || row >= p->height) continue;
                const float *weights = p->filter + (dz * p->kernel[1] + dy) * p->kernel[2] * sources + c;
                float *to = image + (plane * p->height + row) * p->width * p->channels + c;
#define GATHER(x, n, wide) gather(p, source + c, weights, to, x, n, wide)
#define GATHER_3(x, n) GATHER(x, n, 3)
#define GATHER_5(x, n) GATHER(x, n, 5)
#define GATHER_ANY(x, n) GATHER(x, n, 0)
                if (p->kernel[2] == 3) ALONG_ROW(p, GATHER_3, GATHERED);
                else if (p->kernel[2] == 5) ALONG_ROW(p, GATHER_5, GATHERED);
                else ALONG_ROW(p, GATHER_ANY, GATHERED);
#undef GATHER_ANY
#undef GATHER_5
#undef GATHER_3
#undef GATHER
            }
        }
}

/* What the adjoint convolutions of images are made to serve. */
enum purpose { UPDATE, QUOTIENT_GRADIENTS, SOURCE_GRADIENT };

/* A row of the source, and of what belongs to it. */
typedef struct {
    float *source;
    const float *upstream;      /* gradient of the updated source */
    float *gradient, *updated;
} row;

/* Ratios, and voxels of a row by the images there are, whose sums stay in registers. */
enum { RATIOS = 4, SCATTERED_2 = LANES == 16 ? 3 : 1, SCATTERED_3 = LANES == 16 ? 2 : 1 };

/* Of n voxels, LANES channels and the ratios r to r + rs - 1. */
INLINE void adjoint(const problem *p, const float *const *images, const row *at, whole z, whole y, whole x, whole c,
                    whole r, const int n, const int rs, const enum purpose purpose) {
    const int count = purpose == SOURCE_GRADIENT ? 3 : 2;
    const whole sources = p->channels * p->ratio;
    whole z0, z1, y0, y1, x0 = 0, x1 = p->kernel[2];
    taps(z, p->depth, p->kernel[0], &z0, &z1);
    taps(y, p->height, p->kernel[1], &y0, &y1);
    if (n == 1) taps(x, p->width, p->kernel[2], &x0, &x1);
    vector sum[RATIOS][3][SCATTERED_2];
    for (int q = 0; q < rs; q++)
        for (int k = 0; k < count; k++)
            for (int i = 0; i < n; i++) sum[q][k][i] = (vector){0};
    for (whole dz = z0; dz < z1; dz++)
        for (whole dy = y0; dy < y1; dy++) {
            const whole plane = z + dz - p->kernel[0] / 2, line = y + dy - p->kernel[1] / 2;
            const whole voxel = (plane * p->height + line) * p->width + x - p->kernel[2] / 2;
            /* The adjoint's filter is the filter flipped. */
            const whole tap = ((p->kernel[0] - 1 - dz) * p->kernel[1] + p->kernel[1] - 1 - dy) * p->kernel[2];
            const float *weights = p->filter + (tap + p->kernel[2] - 1) * sources + r * p->channels + c;
            for (whole dx = x0; dx < x1; dx++) {
                const whole here = (voxel + dx) * p->channels + c;
                vector value[3][SCATTERED_2];
                for (int k = 0; k < count; k++)
                    for (int i = 0; i < n; i++) value[k][i] = load(images[k] + here + i * p->channels);
                for (int q = 0; q < rs; q++) {
                    const vector weight = load(weights - dx * sources + q * p->channels);
                    for (int k = 0; k < count; k++)
                        for (int i = 0; i < n; i++) sum[q][k][i] += weight * value[k][i];
                }
            }
        }
    for (int q = 0; q < rs; q++)
        for (int i = 0; i < n; i++) {
            const whole here = ((x + i) * p->ratio + r + q) * p->channels + c;
            const vector numerator = sum[q][0][i] + p->eps, denominator = sum[q][1][i] + p->eps;
            const vector source = load(at->source + here);
            if (purpose == UPDATE) {
                store(at->source + here, quotient(source, numerator, denominator));
                continue;
            }
            const vector arrived = load(at->upstream + here);
            if (purpose == QUOTIENT_GRADIENTS) {
                const vector result = quotient(source, numerator, denominator);
                store(at->updated + here, result);
                store(at->gradient + here, quotient(arrived, source, denominator));
                store(at->source + here, -quotient(arrived, result, denominator));
            } else {
                const vector found = quotient(arrived, numerator, denominator) + sum[q][2][i];
                store(at->gradient + here, p->source_matrix ? unless(source <= 0, found) : found);
            }
        }
}

/* For a row (z, y), from whole images:
 *
 *   UPDATE               source <- source N / D; of image, reconstruction
 *   QUOTIENT_GRADIENTS   gradient <- that of N, source <- that of D, updated <- the update; likewise
 *   SOURCE_GRADIENT      gradient <- that of the source, before it was rectified if it was made of the image; also of
 *                        the reconstruction's gradient */
INLINE void adjoint_row(const problem *p, const float *const *images, const row *at, whole z, whole y,
                        const enum purpose purpose) {
#define ADJOINT(x, n, rs) adjoint(p, images, at, z, y, x, c, r, n, rs, purpose)
#define ALL_RATIOS(x, n)                                                     \
    do {                                                                     \
        whole r = 0;                                                         \
        for (; r + RATIOS <= p->ratio; r += RATIOS) ADJOINT(x, n, RATIOS);   \
        for (; r < p->ratio; r++) ADJOINT(x, n, 1);                          \
    } while (0)
    for (whole c = 0; c < p->channels; c += LANES) {
        if (purpose == SOURCE_GRADIENT) ALONG_ROW(p, ALL_RATIOS, SCATTERED_3);
        else ALONG_ROW(p, ALL_RATIOS, SCATTERED_2);
    }
#undef ALL_RATIOS
#undef ADJOINT
}

/* Adds source[v] image[v + tap] over a row to `sums`, for `rs` ratios and for `ds` taps from dx on. */
INLINE void correlate(const problem *p, const float *image, const float *source, float *sums, whole dx, const int rs,
                      const int ds) {
    const whole sources = p->channels * p->ratio, border = p->kernel[2] / 2;
    /* Between these all taps lie inside. */
    const whole from = smaller(larger(0, border - dx), p->width);
    const whole to = larger(from, smaller(p->width, p->width + border - dx - ds + 1));
    vector sum[4][3];
    for (int r = 0; r < rs; r++)
        for (int d = 0; d < ds; d++) sum[r][d] = (vector){0};
    for (whole x = 0; x < p->width; x++) {
        if (x == from) {
            for (; x < to; x++) {
                vector values[3];
                for (int d = 0; d < ds; d++) values[d] = load(image + (x + dx + d - border) * p->channels);
                for (int r = 0; r < rs; r++) {
                    const vector weight = load(source + x * sources + r * p->channels);
                    for (int d = 0; d < ds; d++) sum[r][d] += weight * values[d];
                }
            }
            if (x == p->width) break;
        }
        for (int d = 0; d < ds; d++) {
            const whole other = x + dx + d - border;
            if (other < 0 || other >= p->width) continue;
            for (int r = 0; r < rs; r++)
                sum[r][d] += load(source + x * sources + r * p->channels) * load(image + other * p->channels);
        }
    }
    for (int d = 0; d < ds; d++)
        for (int r = 0; r < rs; r++) {
            float *to_add = sums + d * sources + r * p->channels;
            store(to_add, load(to_add) + sum[r][d]);
        }
}

/* Adds to the gradient of the filter, flipped, what an image and a row (z, y) of the gradient of its adjoint convolution
 * contribute: sum_v image(v + tap) source(v). */
static void correlate_row(const problem *p, const float *image, const float *source, float *flipped, whole z, whole y) {
    const whole sources = p->channels * p->ratio;
    whole z0, z1, y0, y1;
    taps(z, p->depth, p->kernel[0], &z0, &z1);
    taps(y, p->height, p->kernel[1], &y0, &y1);
    for (whole c = 0; c < p->channels; c += LANES)
        for (whole dz = z0; dz < z1; dz++)
            for (whole dy = y0; dy < y1; dy++) {
                const whole plane = z + dz - p->kernel[0] / 2, line = y + dy - p->kernel[1] / 2;
                const float *other = image + (plane * p->height + line) * p->width * p->channels + c;
                float *sums = flipped + (dz * p->kernel[1] + dy) * p->kernel[2] * sources + c;
#define CORRELATE(rs, ds) \
    correlate(p, other, source + r * p->channels + c, sums + dx * sources + r * p->channels, dx, rs, ds)
                for (whole dx = 0, ds; dx < p->kernel[2]; dx += ds) {
                    ds = p->kernel[2] - dx >= 3 ? 3 : 1;
                    for (whole r = 0, rs; r < p->ratio; r += rs) {
                        rs = p->ratio - r >= 4 ? 4 : 1;
                        if (ds == 3 && rs == 4) CORRELATE(4, 3);
                        else if (ds == 3) CORRELATE(1, 3);
                        else if (rs == 4) CORRELATE(4, 1);
                        else CORRELATE(1, 1);
                    }
                }
#undef CORRELATE
            }
}

/* The planes of one image that a thread has: its own are `first` to `end`, those it needs a source for from `start` to
 * `stop`. */
typedef struct {
    whole image, first, end, start, stop;
} planes;

/* The planes of image b that belong to a part of all. */
static planes own_planes(const problem *p, whole b, int part, int threads) {
    const whole all = p->images * p->depth, halo = p->kernel[0] / 2;
    const whole first = smaller(larger(all * part / threads - b * p->depth, 0), p->depth);
    const whole end = smaller(larger(all * (part + 1) / threads - b * p->depth, first), p->depth);
    return (planes){b, first, end, larger(first - halo, 0), smaller(end + halo, p->depth)};
}

/* Rows of a band: as many voxels as make good use of a matrix that is loaded for them. */
static whole band_rows(const problem *p) { return smaller(larger(64 / p->width, 1), p->height); }

/* For the planes of a thread, image by image, whole planes of which are empty left out. */
#define FOR_OWN_IMAGES                                                     \
    for (whole b = 0; b < p->images; b++)                                  \
        for (planes own = own_planes(p, b, part, threads); own.image == b && own.first < own.end; own.image = -1)

/* For the bands of planes from `a` to `o`: y is the first row, `count` the rows, `at` the first voxel. */
#define FOR_BANDS(a, o)                                                                             \
    for (whole z = a; z < (o); z++)                                                                 \
        for (whole y = 0, count, at; y < p->height && (count = smaller(band, p->height - y), 1) &&  \
                                     (at = ((b * p->depth + z) * p->height + y) * p->width, 1);     \
             y += band)

static void make_source(const problem *p, whole at, whole voxels, float *source) {
    const whole sources = p->channels * p->ratio;
    if (p->source_matrix)
        multiply_rows(p->image + at * p->channels, p->source_matrix, p->source_bias, source, voxels, p->channels, sources,
                      RECTIFIED);
    else memcpy(source, p->source + at * sources, voxels * sources * sizeof(float));
}

/* reconstruction = source (*) filter, out = the updated source, or what it is projected to. Returns 0, or 1 without
 * memory. */
int update(const problem *p, float *reconstruction, float *out, int threads) {
    const whole sources = p->channels * p->ratio, band = band_rows(p), image_size = p->depth * p->height * p->width;
    const whole size = band * p->width * sources, row_size = p->width * sources;
    float *bands = malloc(threads * size * sizeof(float));
    if (!bands) return 1;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        float *source = bands + part * size;
        FOR_OWN_IMAGES {
            float *whole_image = reconstruction + b * image_size * p->channels;
            const whole plane = p->height * p->width * p->channels;
            memset(whole_image + own.first * plane, 0, (own.end - own.first) * plane * sizeof(float));
            FOR_BANDS(own.start, own.stop) {
                make_source(p, at, count * p->width, source);
                for (whole i = 0; i < count; i++)
                    gather_row(p, source + i * row_size, whole_image, own.first, own.end, z, y + i);
            }
        }
    }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        FOR_OWN_IMAGES {
            const whole offset = b * image_size * p->channels;
            const float *images[] = {p->image + offset, reconstruction + offset};
            FOR_BANDS(own.first, own.end) {
                float *source = p->out_matrix ? bands + part * size : out + at * sources;
                make_source(p, at, count * p->width, source);
                for (whole i = 0; i < count; i++) {
                    const row here = {source + i * row_size, 0, 0, 0};
                    adjoint_row(p, images, &here, z, y + i, UPDATE);
                }
                if (p->out_matrix)
                    multiply_rows(source, p->out_matrix, p->out_bias, out + at * p->outputs, count * p->width, sources,
                                  p->outputs, AS_IT_IS);
            }
        }
    }
    free(bands);
    return 0;
}

/* The gradients by all that is not null, of `gradient`, that of the result. Those of the image and of the
 * reconstruction are written, as is that of a source that was given; all others are added to, that of the filter flipped.
 * Returns 0, or 1 without memory. */
int differentiate_update(const problem *p, const float *reconstruction, const float *gradient,
                         float *reconstruction_gradient, float *image_gradient, float *source_gradient,
                         float *source_matrix_gradient, float *source_bias_gradient, float *filter_gradient,
                         float *out_matrix_gradient, float *out_bias_gradient, int threads) {
    const whole sources = p->channels * p->ratio, band = band_rows(p), image_size = p->depth * p->height * p->width;
    const whole size = band * p->width * sources, row_size = p->width * sources;
    /* What each thread sums up: gradients of the filter, and of matrix and bias of both projections. */
    const whole filter_size = p->kernel[0] * p->kernel[1] * p->kernel[2] * sources;
    const whole in_size = p->source_matrix ? p->channels * sources : 0, in_bias = p->source_matrix ? sources : 0;
    const whole out_size = sources * p->outputs;
    const whole sums_size = filter_size + in_size + in_bias + out_size + p->outputs;
    float *bands = malloc(threads * 4 * size * sizeof(float));
    float *sums = calloc(threads * sums_size, sizeof(float));
    if (!bands || !sums) {
        free(bands);
        free(sums);
        return 1;
    }
#define ROOM                                                                                              \
    float *source = bands + part * 4 * size, *room = source + size, *updated = room + size;               \
    float *of_filter = sums + part * sums_size, *of_in = of_filter + filter_size;                         \
    float *of_in_bias = of_in + in_size, *of_out = of_in_bias + in_bias, *of_out_bias = of_out + out_size
#define MAKE_SOURCE_AND_UPSTREAM                                                                                   \
    const whole voxels = count * p->width;                                                                         \
    make_source(p, at, voxels, source);                                                                            \
    const float *upstream = gradient + at * sources;                                                               \
    if (p->out_matrix) {                                                                                           \
        upstream = room;                                                                                           \
        multiply_rows(gradient + at * p->outputs, p->out_adjoint, 0, room, voxels, p->outputs, sources, AS_IT_IS); \
    }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        ROOM;
        float *of_numerator = updated + size;
        FOR_OWN_IMAGES {
            const whole offset = b * image_size * p->channels, plane = p->height * p->width * p->channels;
            const float *images[] = {p->image + offset, reconstruction + offset};
            float *of_image = image_gradient + offset, *of_reconstruction = reconstruction_gradient + offset;
            memset(of_image + own.first * plane, 0, (own.end - own.first) * plane * sizeof(float));
            memset(of_reconstruction + own.first * plane, 0, (own.end - own.first) * plane * sizeof(float));
            FOR_BANDS(own.start, own.stop) {
                MAKE_SOURCE_AND_UPSTREAM
                const int is_own = own.first <= z && z < own.end;
                for (whole i = 0; i < count; i++) {
                    const row here = {source + i * row_size, upstream + i * row_size, of_numerator + i * row_size,
                                      updated + i * row_size};
                    adjoint_row(p, images, &here, z, y + i, QUOTIENT_GRADIENTS);
                    gather_row(p, here.gradient, of_image, own.first, own.end, z, y + i);
                    gather_row(p, here.source, of_reconstruction, own.first, own.end, z, y + i);
                    if (!is_own) continue;
                    correlate_row(p, images[0], here.gradient, of_filter, z, y + i);
                    correlate_row(p, images[1], here.source, of_filter, z, y + i);
                }
                if (p->out_matrix && is_own)
                    correlate_rows(updated, gradient + at * p->outputs, of_out, of_out_bias, voxels, sources, p->outputs);
            }
        }
    }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        ROOM;
        (void)of_out_bias;
        FOR_OWN_IMAGES {
            const whole offset = b * image_size * p->channels;
            const float *images[] = {p->image + offset, reconstruction + offset, reconstruction_gradient + offset};
            FOR_BANDS(own.first, own.end) {
                MAKE_SOURCE_AND_UPSTREAM
                float *of_source = p->source_matrix ? updated : source_gradient + at * sources;
                for (whole i = 0; i < count; i++) {
                    const row here = {source + i * row_size, upstream + i * row_size, of_source + i * row_size, 0};
                    adjoint_row(p, images, &here, z, y + i, SOURCE_GRADIENT);
                    correlate_row(p, images[2], here.source, of_filter, z, y + i);
                }
                if (!p->source_matrix) continue;
                multiply_rows(of_source, p->source_adjoint, 0, image_gradient + at * p->channels, voxels, sources,
                              p->channels, ADDED);
                correlate_rows(p->image + at * p->channels, of_source, of_in, of_in_bias, voxels, p->channels, sources);
            }
        }
    }
    for (int part = 0; part < threads; part++) {
        ROOM;
        (void)updated;
        add(filter_gradient, of_filter, filter_size);
        if (p->source_matrix) add(source_matrix_gradient, of_in, in_size), add(source_bias_gradient, of_in_bias, in_bias);
        if (p->out_matrix) add(out_matrix_gradient, of_out, out_size), add(out_bias_gradient, of_out_bias, p->outputs);
    }
#undef MAKE_SOURCE_AND_UPSTREAM
#undef ROOM
    free(bands);
    free(sums);
    return 0;
}
