/* One number as bfloat16. */

#include <stdint.h>
#include <string.h>

static inline float widened(uint16_t u) {
    const uint32_t bits = (uint32_t)u << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint16_t rounded(float f) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &f, 4);
    const uint32_t up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return f != f ? 0x7fc0 : (uint16_t)up;
}
