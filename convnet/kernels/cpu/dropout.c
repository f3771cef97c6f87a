/* Dropout from a counter: y_i = x_i * scale where the 53 bits drawn for position first + i are >= threshold, else 0. */

#include "bfloat16.h"

static inline uint64_t mixed(uint64_t x) { /* splitmix64 */
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

void drop(const void *restrict x, void *restrict y, int64_t n, uint64_t state, uint64_t first, uint64_t threshold,
          float scale, int32_t bf16) {
    if (bf16) {
        const uint16_t *restrict in = x;
        uint16_t *restrict out = y;
        for (int64_t i = 0; i < n; i++) {
            const uint16_t kept = rounded(widened(in[i]) * scale);
            out[i] = (mixed(state ^ mixed(first + i + 1)) >> 11) >= threshold ? kept : 0;
        }
    } else {
        const float *restrict in = x;
        float *restrict out = y;
        for (int64_t i = 0; i < n; i++)
            out[i] = (mixed(state ^ mixed(first + i + 1)) >> 11) >= threshold ? in[i] * scale : 0;
    }
}
