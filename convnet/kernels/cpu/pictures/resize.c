/* Pillow's resampling of 8-bit RGB: sums of pixels times whole numbers, 22 bits after the point, rounded after the rows and after
 * the columns. Rows are read `ROWS` at a time and laid so that a byte of all of them lies together: sums go side by side. */

#include <stdlib.h>

#include "bytes.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bytes are exchanged within words");

#define BITS 22
#define ROWS 16
#define TOGETHER (4 * LANES) /* bytes of a row that are laid, or added up, at a time */

typedef uint64_t Words __attribute__((vector_size(TOGETHER)));

static inline Sums rounded(Sums sums) { /* within 0 to 255 */
    sums >>= BITS;
    sums &= ~(sums >> 31);
    return sums | (255 - sums) >> 31;
}

static inline void exchange(Words *a, Words *b, int bits, uint64_t low) {
    Words other = (*a >> bits ^ *b) & low;
    *b ^= other;
    *a ^= other << bits;
}

/* Eight times eight bytes, rows to columns, in each of the words. */
static inline void turn(Words *x) {
    for (int i = 0; i < 4; i++) exchange(x + i, x + i + 4, 32, 0x00000000FFFFFFFF);
    for (int i = 0; i < 8; i += i % 4 ? 3 : 1) exchange(x + i, x + i + 2, 16, 0x0000FFFF0000FFFF);
    for (int i = 0; i < 8; i += 2) exchange(x + i, x + i + 1, 8, 0x00FF00FF00FF00FF);
}

static inline void copy(void *y, const void *x, int64_t n) { /* TOGETHER bytes, or the n that are left */
    if (n >= TOGETHER)
        memcpy(y, x, TOGETHER);
    else
        memcpy(y, x, n);
}

/* n rows of `bytes` bytes at x -> byte i of all at laid + i * ROWS; what no row fills is of any value */
static void lay(const uint8_t *x, int64_t bytes, int64_t n, uint8_t *laid) {
    for (int64_t first = 0; first < bytes; first += TOGETHER)
        for (int64_t half = 0; half < n; half += 8) {
            Words words[8] = {{0}};
            for (int64_t r = 0; r < 8 && half + r < n; r++)
                copy(words + r, x + (half + r) * bytes + first, bytes - first);
            turn(words);
            for (int i = 0; i < 8; i++)
                for (int block = 0; block < TOGETHER / 8; block++)
                    memcpy(laid + (first + 8 * block + i) * ROWS + half, (uint64_t *)&words[i] + block, 8);
        }
}

/* The way back. */
static void lay_back(const uint8_t *laid, int64_t bytes, int64_t n, uint8_t *y) {
    for (int64_t first = 0; first < bytes; first += TOGETHER)
        for (int64_t half = 0; half < n; half += 8) {
            Words words[8];
            for (int i = 0; i < 8; i++)
                for (int block = 0; block < TOGETHER / 8; block++)
                    memcpy((uint64_t *)&words[i] + block, laid + (first + 8 * block + i) * ROWS + half, 8);
            turn(words);
            for (int64_t r = 0; r < 8 && half + r < n; r++)
                copy(y + (half + r) * bytes + first, words + r, bytes - first);
        }
}

/* Where each pixel of a direction's result begins, of how many pixels it is a sum, and their weights. */
typedef struct {
    const int64_t *begin, *count;
    const int32_t *weights;
    int64_t most; /* weights that each has room for */
} Axis;

/* n rows of `width` pixels at x -> n rows of `out` pixels at y; laid, narrow: room for both, laid, and TOGETHER bytes more */
static void across(const uint8_t *x, int64_t width, int64_t n, uint8_t *y, int64_t out, const Axis *axis, uint8_t *laid,
                   uint8_t *narrow) {
    lay(x, 3 * width, n, laid);
    for (int64_t j = 0; j < out; j++) {
        const uint8_t *from = laid + axis->begin[j] * 3 * ROWS;
        const int32_t *weights = axis->weights + j * axis->most;
        Sums sums[3 * ROWS / LANES];
        for (int i = 0; i < 3 * ROWS / LANES; i++) sums[i] = (Sums){0} + (1 << (BITS - 1));
        for (int64_t k = 0; k < axis->count[j]; k++, from += 3 * ROWS)
            for (int i = 0; i < 3 * ROWS / LANES; i++) sums[i] += at(from + i * LANES) * weights[k];
        for (int i = 0; i < 3 * ROWS / LANES; i++) put(narrow + j * 3 * ROWS + i * LANES, rounded(sums[i]));
    }
    lay_back(narrow, 3 * out, n, y);
}

/* One row of the result: a sum of `count` rows of `bytes` bytes. */
static void down(const uint8_t *x, int64_t bytes, uint8_t *y, int64_t count, const int32_t *weights) {
    int64_t first = 0;
    for (; first + TOGETHER <= bytes; first += TOGETHER) {
        Sums sums[TOGETHER / LANES];
        for (int i = 0; i < TOGETHER / LANES; i++) sums[i] = (Sums){0} + (1 << (BITS - 1));
        for (int64_t k = 0; k < count; k++)
            for (int i = 0; i < TOGETHER / LANES; i++) sums[i] += at(x + k * bytes + first + i * LANES) * weights[k];
        for (int i = 0; i < TOGETHER / LANES; i++) put(y + first + i * LANES, rounded(sums[i]));
    }
    for (; first < bytes; first++) {
        int32_t sum = 1 << (BITS - 1);
        for (int64_t k = 0; k < count; k++) sum += x[k * bytes + first] * weights[k];
        sum >>= BITS;
        y[first] = sum < 0 ? 0 : sum > 255 ? 255 : (uint8_t)sum;
    }
}

/* shape: height and width of x, then of y, then how many weights each row and each column of y has room for. y may be a part of the
 * result. Of a direction that stays as it is begin is NULL. Returns 1 where there is no memory. */
int resize(const int64_t *shape, const uint8_t *x, uint8_t *y, const int64_t *row_begin, const int64_t *row_count,
           const int32_t *row_weights, const int64_t *begin, const int64_t *count, const int32_t *weights) {
    int64_t width = shape[1], out_height = shape[2], out_width = shape[3], bytes = 3 * out_width;
    Axis columns = {begin, count, weights, shape[5]};
    if (!begin) {
        for (int64_t j = 0; j < out_height; j++)
            down(x + row_begin[j] * bytes, bytes, y + j * bytes, row_count[j], row_weights + j * shape[4]);
        return 0;
    }
    int64_t room = row_begin ? 2 * (shape[4] + ROWS) : 0; /* rows that wait for the others of a sum */
    uint8_t *laid = malloc((3 * width + TOGETHER) * ROWS), *narrow = malloc((bytes + TOGETHER) * ROWS);
    uint8_t *wide = malloc(room * bytes + 1);
    int64_t kept = row_begin ? row_begin[0] : 0, next = kept; /* rows kept to next - 1 are in `wide` */
    for (int64_t j = 0; laid && narrow && wide && j < out_height; j++) {
        if (!row_begin) {
            if (j % ROWS == 0)
                across(x + j * width * 3, width, out_height - j < ROWS ? out_height - j : ROWS, y + j * bytes, out_width,
                       &columns, laid, narrow);
            continue;
        }
        while (next < row_begin[j] + row_count[j]) {
            int64_t n = shape[0] - next < ROWS ? shape[0] - next : ROWS;
            if (next - kept + n > room) {
                memmove(wide, wide + (row_begin[j] - kept) * bytes, (next - row_begin[j]) * bytes);
                kept = row_begin[j];
            }
            across(x + next * width * 3, width, n, wide + (next - kept) * bytes, out_width, &columns, laid, narrow);
            next += n;
        }
        down(wide + (row_begin[j] - kept) * bytes, bytes, y + j * bytes, row_count[j], row_weights + j * shape[4]);
    }
    int failed = !laid || !narrow || !wide;
    free(laid);
    free(narrow);
    free(wide);
    return failed;
}
