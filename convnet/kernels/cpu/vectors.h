/* Floats side by side, as many as the processor takes: what is wider GCC takes apart, element by element in comparisons. */

#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float V __attribute__((vector_size(4 * LANES)));

static inline V at(const float *x) {
    V v;
    memcpy(&v, x, sizeof v);
    return v;
}
static inline void put(float *x, V v) { memcpy(x, &v, sizeof v); }
