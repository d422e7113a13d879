/* Linear interpolation of images at any positions, forward and backward, on a CPU.
 *
 * Tensors are float32, contiguous, channels last:
 *
 *   image      images x depth x height x width x channels
 *   position   images x voxels x groups x 3, in voxels of the image from the centre of its first: along depth, height, width
 *   sampled    images x voxels x channels
 *
 * The channels of a group follow its position; a group has a multiple of LANES of them. A position beyond the outermost
 * centres counts as there, and has no gradient by its own. Sums run in a fixed order.
 */

#include <string.h>

#include "vectors.h"

typedef struct {
    whole images, depth, height, width, channels, groups, voxels;
} sampling;

/* The eight voxels around a position: where their channels begin, and their weights, by axis. */
typedef struct {
    whole at[8];
    float low[3], high[3]; /* weights of the nearer voxel of each axis, and of the one beyond */
    int moves[3];          /* whether a small step along the axis changes anything */
} corners;

INLINE corners around(const sampling *s, const float *position) {
    const whole sizes[] = {s->depth, s->height, s->width}, steps[] = {s->height * s->width, s->width, 1};
    corners found;
    whole first[3], step[3];
    for (int axis = 0; axis < 3; axis++) {
        const float last = (float)(sizes[axis] - 1);
        /* A NaN is taken for the first voxel, as no index must come of it. */
        const float x = position[axis] > 0 ? (position[axis] < last ? position[axis] : last) : 0;
        const whole below = smaller((whole)x, larger(sizes[axis] - 2, 0));
        found.high[axis] = x - (float)below;
        found.low[axis] = 1 - found.high[axis];
        found.moves[axis] = position[axis] > 0 && position[axis] < last;
        first[axis] = below * steps[axis];
        step[axis] = sizes[axis] > 1 ? steps[axis] : 0;
    }
    for (int i = 0; i < 8; i++)
        found.at[i] = (first[0] + (i >> 2) * step[0] + first[1] + (i >> 1 & 1) * step[1] + first[2] + (i & 1) * step[2]) *
                      s->channels;
    return found;
}

INLINE float weight(const corners *c, int i) {
    return (i >> 2 ? c->high[0] : c->low[0]) * (i >> 1 & 1 ? c->high[1] : c->low[1]) * (i & 1 ? c->high[2] : c->low[2]);
}

void sample(const sampling *s, const float *image, const float *position, float *sampled, int threads) {
    const whole of_group = s->channels / s->groups, size = s->depth * s->height * s->width * s->channels;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (whole voxel = 0; voxel < s->images * s->voxels; voxel++)
        for (whole g = 0; g < s->groups; g++) {
            const corners here = around(s, position + (voxel * s->groups + g) * 3);
            const float *from = image + voxel / s->voxels * size;
            float weights[8];
            for (int i = 0; i < 8; i++) weights[i] = weight(&here, i);
            for (whole c = g * of_group; c < (g + 1) * of_group; c += LANES) {
                vector sum = weights[0] * load(from + here.at[0] + c);
                for (int i = 1; i < 8; i++) sum += weights[i] * load(from + here.at[i] + c);
                store(sampled + voxel * s->channels + c, sum);
            }
        }
}

/* The gradients by image and position of `gradient`, that of what was sampled; that by the position where it is not
 * null. */
void differentiate_sample(const sampling *s, const float *image, const float *position, const float *gradient,
                          float *image_gradient, float *position_gradient, int threads) {
    const whole of_group = s->channels / s->groups, size = s->depth * s->height * s->width * s->channels;
    const whole chunks = s->channels / LANES;
    /* What one thread adds to, no other does: it has channels of its own. */
#pragma omp parallel for num_threads(threads) schedule(static)
    for (whole task = 0; task < s->images * chunks; task++) {
        const whole c = task % chunks * LANES, b = task / chunks;
        float *to = image_gradient + b * size + c;
        const vector zero = {0};
        for (whole voxel = 0; voxel < size; voxel += s->channels) store(to + voxel, zero);
        for (whole voxel = b * s->voxels; voxel < (b + 1) * s->voxels; voxel++) {
            const corners here = around(s, position + (voxel * s->groups + c / of_group) * 3);
            const vector arrived = load(gradient + voxel * s->channels + c);
            for (int i = 0; i < 8; i++) store(to + here.at[i], load(to + here.at[i]) + weight(&here, i) * arrived);
        }
    }
    if (!position_gradient) return;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (whole voxel = 0; voxel < s->images * s->voxels; voxel++)
        for (whole g = 0; g < s->groups; g++) {
            const corners here = around(s, position + (voxel * s->groups + g) * 3);
            const float *from = image + voxel / s->voxels * size;
            float weights[3][8];
            for (int i = 0; i < 8; i++)
                for (int axis = 0; axis < 3; axis++) {
                    corners others = here;
                    others.low[axis] = -1;
                    others.high[axis] = 1;
                    weights[axis][i] = weight(&others, i);
                }
            vector sum[3] = {{0}, {0}, {0}};
            for (whole c = g * of_group; c < (g + 1) * of_group; c += LANES) {
                const vector arrived = load(gradient + voxel * s->channels + c);
                vector slope[3] = {{0}, {0}, {0}};
                for (int i = 0; i < 8; i++) {
                    const vector value = load(from + here.at[i] + c);
                    for (int axis = 0; axis < 3; axis++) slope[axis] += weights[axis][i] * value;
                }
                for (int axis = 0; axis < 3; axis++) sum[axis] += slope[axis] * arrived;
            }
            for (int axis = 0; axis < 3; axis++) {
                float total = 0;
                for (int lane = 0; lane < LANES; lane++) total += sum[axis][lane];
                position_gradient[(voxel * s->groups + g) * 3 + axis] = here.moves[axis] ? total : 0;
            }
        }
}
