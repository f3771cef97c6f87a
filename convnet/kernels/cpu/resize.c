/* Pillow's resampling of 8-bit RGB: sums of pixels times whole numbers, 22 bits after the point, rounded after the rows and after
 * the columns. To add side by side, rows are read `ROWS` at a time and laid so that a pixel of all of them lies together. */

#include <stdint.h>
#include <stdlib.h>

#define BITS 22
#define ROWS 16
#define TOGETHER 64 /* bytes of a row that are added up at a time */

static inline uint8_t rounded(int32_t sum) {
    sum >>= BITS;
    return sum < 0 ? 0 : sum > 255 ? 255 : (uint8_t)sum;
}

/* n rows of `width` pixels at x -> n rows of `out` pixels at y; begin, count, weights: of each pixel of the result */
static void across(const uint8_t *x, int64_t width, int64_t n, uint8_t *y, int64_t out, const int64_t *begin,
                   const int64_t *count, const int32_t *weights, int64_t most, uint8_t *laid) {
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < 3 * width; i++) laid[i * ROWS + r] = x[r * 3 * width + i];
    for (int64_t j = 0; j < out; j++) {
        int32_t sums[3 * ROWS];
        uint8_t pixels[3 * ROWS];
        const uint8_t *from = laid + begin[j] * 3 * ROWS;
        for (int i = 0; i < 3 * ROWS; i++) sums[i] = 1 << (BITS - 1);
        for (int64_t k = 0; k < count[j]; k++)
            for (int i = 0; i < 3 * ROWS; i++) sums[i] += from[k * 3 * ROWS + i] * weights[j * most + k];
        for (int i = 0; i < 3 * ROWS; i++) pixels[i] = rounded(sums[i]);
        for (int c = 0; c < 3; c++)
            for (int64_t r = 0; r < n; r++) y[(r * out + j) * 3 + c] = pixels[c * ROWS + r];
    }
}

/* One row of the result: a sum of `count` rows of `bytes` bytes. */
static void down(const uint8_t *x, int64_t bytes, uint8_t *y, int64_t count, const int32_t *weights) {
    for (int64_t first = 0; first < bytes; first += TOGETHER) {
        int64_t n = bytes - first < TOGETHER ? bytes - first : TOGETHER;
        int32_t sums[TOGETHER];
        for (int i = 0; i < TOGETHER; i++) sums[i] = 1 << (BITS - 1);
        if (n == TOGETHER)
            for (int64_t k = 0; k < count; k++)
                for (int i = 0; i < TOGETHER; i++) sums[i] += x[k * bytes + first + i] * weights[k];
        else
            for (int64_t k = 0; k < count; k++)
                for (int64_t i = 0; i < n; i++) sums[i] += x[k * bytes + first + i] * weights[k];
        for (int64_t i = 0; i < n; i++) y[first + i] = rounded(sums[i]);
    }
}

/* shape: height and width of x, then of y, then how many weights each row and each column of y has room for. Of a direction that
 * stays as it is begin is NULL. Returns 1 where there is no memory. */
int resize(const int64_t *shape, const uint8_t *x, uint8_t *y, const int64_t *row_begin, const int64_t *row_count,
           const int32_t *row_weights, const int64_t *begin, const int64_t *count, const int32_t *weights) {
    int64_t height = shape[0], width = shape[1], out_height = shape[2], out_width = shape[3];
    uint8_t *wide = NULL;
    if (begin) {
        wide = row_begin ? malloc(height * out_width * 3) : y;
        uint8_t *laid = calloc(width * 3, ROWS);
        if (!wide || !laid) {
            free(laid);
            if (row_begin) free(wide);
            return 1;
        }
        for (int64_t r = 0; r < height; r += ROWS)
            across(x + r * width * 3, width, height - r < ROWS ? height - r : ROWS, wide + r * out_width * 3, out_width,
                   begin, count, weights, shape[5], laid);
        free(laid);
        x = wide;
    }
    if (row_begin) {
        for (int64_t j = 0; j < out_height; j++)
            down(x + row_begin[j] * out_width * 3, out_width * 3, y + j * out_width * 3, row_count[j],
                 row_weights + j * shape[4]);
        if (begin) free(wide);
    }
    return 0;
}
