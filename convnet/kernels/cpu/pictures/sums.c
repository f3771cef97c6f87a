/* What a picture adds to the statistics of a data set: whole numbers, exact in any order. */

#include "bytes.h"

#define TURNS 33025 /* sums of products 0..255 x 255 that an int32 holds */

/* bytes: of n_pixels pixels RGB; sums: grows by each byte; products: six, by RR, RG, RB, GG, GB, BB */
void picture_sums(const uint8_t *bytes, int64_t n_pixels, uint16_t *sums, int64_t *products) {
    for (int64_t i = 0; i < 3 * n_pixels; i++) sums[i] += bytes[i];
    const uint8_t *x = bytes, *end = bytes + 3 * n_pixels;
    while (end - x >= 3 * LANES + 3) { /* LANES pixels at a time; two bytes more are read */
        Sums same[3] = {{0}}, next[3] = {{0}}, third[3] = {{0}}; /* each byte times itself, the next, the one after that */
        for (int64_t turn = 0; turn < TURNS && end - x >= 3 * LANES + 3; turn++, x += 3 * LANES)
            for (int i = 0; i < 3; i++) {
                Sums byte = at(x + i * LANES);
                same[i] += byte * byte;
                next[i] += byte * at(x + i * LANES + 1);
                third[i] += byte * at(x + i * LANES + 2);
            }
        for (int i = 0; i < 3 * LANES; i += 3) {
            products[0] += same[i / LANES][i % LANES];
            products[1] += next[i / LANES][i % LANES];
            products[2] += third[i / LANES][i % LANES];
            products[3] += same[(i + 1) / LANES][(i + 1) % LANES];
            products[4] += next[(i + 1) / LANES][(i + 1) % LANES];
            products[5] += same[(i + 2) / LANES][(i + 2) % LANES];
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
