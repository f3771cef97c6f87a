/* What a picture adds to the statistics of a data set: whole numbers, exact in any order. */

#include <stdint.h>

#define PIXELS 16     /* side by side */
#define TURNS 66051   /* sums of products 0..255 x 255 that a uint32 holds */

/* bytes: of n_pixels pixels RGB; sums: grows by each byte; products: six, by RR, RG, RB, GG, GB, BB */
void picture_sums(const uint8_t *bytes, int64_t n_pixels, uint16_t *sums, int64_t *products) {
    for (int64_t i = 0; i < 3 * n_pixels; i++) sums[i] += bytes[i];
    const uint8_t *x = bytes, *end = bytes + 3 * n_pixels;
    while (end - x >= 3 * (PIXELS + 1)) { /* two bytes more are read */
        uint32_t same[3 * PIXELS] = {0}, next[3 * PIXELS] = {0}, third[3 * PIXELS] = {0};
        for (int64_t turn = 0; turn < TURNS && end - x >= 3 * (PIXELS + 1); turn++, x += 3 * PIXELS)
            for (int i = 0; i < 3 * PIXELS; i++) {
                same[i] += x[i] * x[i];
                next[i] += x[i] * x[i + 1];
                third[i] += x[i] * x[i + 2];
            }
        for (int i = 0; i < 3 * PIXELS; i += 3) {
            products[0] += same[i];
            products[1] += next[i];
            products[2] += third[i];
            products[3] += same[i + 1];
            products[4] += next[i + 1];
            products[5] += same[i + 2];
        }
    }
    for (; x < end; x += 3) {
        int64_t red = x[0], green = x[1], blue = x[2];
        products[0] += red * red;
        products[1] += red * green;
        products[2] += red * blue;
        products[3] += green * green;
        products[4] += green * blue;
        products[5] += blue * blue;
    }
}
