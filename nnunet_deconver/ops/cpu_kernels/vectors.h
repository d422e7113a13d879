/* What all kernels compute with: vectors of LANES floats. */

#define INLINE static inline __attribute__((always_inline))

/* LANES comes from the command line, with the instructions to use. */
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef long long whole;

INLINE vector load(const float *from) { return *(const vector *)from; }
INLINE void store(float *to, vector values) { *(vector *)to = values; }
INLINE whole larger(whole a, whole b) { return a > b ? a : b; }
INLINE whole smaller(whole a, whole b) { return a < b ? a : b; }

INLINE vector magnitude(vector values) { return (vector)((bits)values & 0x7fffffff); }
/* values, but 0 where the condition holds; a NaN meets none */
INLINE vector unless(bits condition, vector values) { return (vector)((bits)values & ~condition); }
