/* Stored squares to the net's input in one pass: crop, grey, minus mean, colour shift, mirror, scale, offset, cast.

   Each value is  (x - mean + colour) * scale + offset  in fp32, every operation rounded by itself, as the
   plain form does it (products and sums may not become one operation); then, if asked for, rounded to the nearest bfloat16, ties to even.
   What lies outside of the square is black, and a mean picture is 0 there. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

typedef struct {
    int64_t size, crop;
    int32_t grey, bf16, mean_picture; /* mean_picture: `mean` is a picture, else a colour */
    float scale, offset;
} How;

static inline uint16_t rounded(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return f != f ? 0x7fc0 : (uint16_t)up;
}

static void row_fp32(float *restrict out, const uint8_t *restrict x, const float *restrict mean,
                     const float *restrict colour, float scale, float offset, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = ((float)x[i] - mean[i] + colour[i]) * scale + offset;
}

static void row_bf16(uint16_t *restrict out, const uint8_t *restrict x, const float *restrict mean,
                     const float *restrict colour, float scale, float offset, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = rounded(((float)x[i] - mean[i] + colour[i]) * scale + offset);
}

static void to_grey(uint8_t *restrict out, const uint8_t *restrict x, int64_t n) { /* ITU-R 601, as Pillow's mode L */
    for (int64_t i = 0; i < n; i++)
        out[i] = (uint8_t)((19595u * x[3 * i] + 38470u * x[3 * i + 1] + 7471u * x[3 * i + 2] + 32768u) >> 16);
}

/* The last pixel first. A pixel of `wide` bytes is moved as `moved` bytes, of which the next one overwrites the rest;
   `in` has room behind its end. */
#define REVERSE(name, wide, moved)                                                        \
    static void name(uint8_t *out, const uint8_t *in, int64_t pixels) {                   \
        for (int64_t i = 0; i < pixels - 1; i++)                                          \
            memcpy(out + (wide) * i, in + (wide) * (pixels - 1 - i), moved);              \
        memcpy(out + (wide) * (pixels - 1), in, wide);                                    \
    }
REVERSE(reverse_grey_bf16, 2, 2)
REVERSE(reverse_grey_fp32, 4, 4)
REVERSE(reverse_rgb_bf16, 6, 8)
REVERSE(reverse_rgb_fp32, 12, 16)

static void repeat(float *out, const float *values, int64_t channels, int64_t pixels) {
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t c = 0; c < channels; c++) out[channels * i + c] = values[c];
}

/* squares: n addresses of the squares' first pixels, uint8 RGB, each with the bytes from one row to the next in
   `strides`; tops, lefts: of the crops; mirrored: n bytes; colours: (n, C); mean: (C) or (size, size, C), or (C) zeros.
   out: (n, crop, crop, C). Returns 0, or 1 when there is no memory. */
int augment(const How *p, const uint8_t *const *squares, const int64_t *strides, const int64_t *tops,
            const int64_t *lefts, const uint8_t *mirrored, const float *colours, const float *mean, void *out,
            int64_t n_pictures) {
    const int64_t crop = p->crop, size = p->size, channels = p->grey ? 1 : 3, n = channels * crop;
    const int64_t bytes = n * (p->bf16 ? 2 : 4);
    float *colour = calloc((size_t)(3 * n), 4), *padded_mean = colour + n, *one_mean = colour + 2 * n;
    uint8_t *padded = calloc((size_t)(3 * crop), 1), *grey = calloc((size_t)crop, 1);
    uint8_t *unturned = calloc((size_t)bytes + 16, 1);
    if (!colour || !padded || !grey || !unturned) {
        free(colour), free(padded), free(grey), free(unturned);
        return 1;
    }
    if (!p->mean_picture) repeat(one_mean, mean, channels, crop);
    for (int64_t k = 0; k < n_pictures; k++) {
        const int64_t left = lefts[k];
        const int64_t from = left < 0 ? (-left < crop ? -left : crop) : 0; /* the crop's columns inside the square */
        const int64_t until = left + crop <= size ? crop : (size - left > from ? size - left : from);
        repeat(colour, colours + k * channels, channels, crop);
        for (int64_t y = 0; y < crop; y++) {
            const int64_t row = tops[k] + y, inside = row >= 0 && row < size ? until - from : 0;
            const uint8_t *x = padded;
            const float *m = p->mean_picture ? padded_mean : one_mean;
            if (inside == crop) {
                x = squares[k] + row * strides[k] + 3 * left;
                if (p->mean_picture) m = mean + (row * size + left) * channels;
            } else {
                memset(padded, 0, (size_t)(3 * crop));
                memset(padded_mean, 0, (size_t)(4 * n));
                if (inside) memcpy(padded + 3 * from, squares[k] + row * strides[k] + 3 * (left + from), (size_t)(3 * inside));
                if (inside && p->mean_picture)
                    memcpy(padded_mean + channels * from, mean + (row * size + left + from) * channels,
                           (size_t)(4 * channels * inside));
            }
            if (p->grey) {
                to_grey(grey, x, crop);
                x = grey;
            }
            uint8_t *place = (uint8_t *)out + (k * crop + y) * bytes, *to = mirrored[k] ? unturned : place;
            if (p->bf16)
                row_bf16((uint16_t *)to, x, m, colour, p->scale, p->offset, n);
            else
                row_fp32((float *)to, x, m, colour, p->scale, p->offset, n);
            if (!mirrored[k]) continue;
            if (p->grey)
                (p->bf16 ? reverse_grey_bf16 : reverse_grey_fp32)(place, unturned, crop);
            else
                (p->bf16 ? reverse_rgb_bf16 : reverse_rgb_fp32)(place, unturned, crop);
        }
    }
    free(colour), free(padded), free(grey), free(unturned);
    return 0;
}
