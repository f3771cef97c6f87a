/* Stored pictures to the net's input in one pass: crop, grey, minus mean, colour shift, mirror, scale, offset, cast.

   Each value is  (x - mean + colour) * scale + offset  in fp32, every operation rounded by itself, as the
   plain form does it (products and sums may not become one operation); then, if asked for, rounded to the nearest bfloat16, ties to even.
   What lies outside of a stored picture is black, and outside of the mean picture the mean is 0. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bfloat16.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

typedef struct {
    int64_t height, width;              /* of the stored pictures, pixels */
    int64_t out_height, out_width;      /* of what is cut out of them */
    int64_t mean_size;                  /* side of the mean picture; 0: the mean is a colour */
    int32_t grey, bf16;
    float scale, offset;
} How;

typedef struct { /* of one picture */
    const uint8_t *pixels; /* its first pixel, RGB */
    int64_t stride;        /* bytes from one row to the next */
    int64_t top, left;     /* of the crop */
    int64_t mean_top, mean_left;
    int64_t mirrored;
} Picture;

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

/* The n pixels from `left` on of a row of a picture, each of `bytes` bytes; where they reach outside, a copy with zeros. */
static const void *window(const void *picture, int64_t stride, int64_t height, int64_t width, int64_t bytes, int64_t row,
                          int64_t left, int64_t n, void *copy) {
    const int exists = row >= 0 && row < height;
    const uint8_t *line = (const uint8_t *)picture + (exists ? row * stride : 0);
    if (exists && left >= 0 && left + n <= width) return line + left * bytes;
    const int64_t from = left < 0 ? -left : 0, until = left + n > width ? width - left : n;
    memset(copy, 0, (size_t)(n * bytes));
    if (exists && from < until)
        memcpy((uint8_t *)copy + from * bytes, line + (left + from) * bytes, (size_t)((until - from) * bytes));
    return copy;
}

/* n pictures of height x width -> out (n, out_height, out_width, C). colours: (n, C); mean: (C), or (size, size, C).
   Returns 0, or 1 when there is no memory. */
int augment(const How *p, const Picture *pictures, const float *colours, const float *mean, void *out, int64_t n) {
    const int64_t width = p->out_width, channels = p->grey ? 1 : 3, values = channels * width;
    const int64_t bytes = values * (p->bf16 ? 2 : 4);
    float *colour = calloc((size_t)(2 * values), 4), *of_mean = colour + values;
    uint8_t *black = calloc((size_t)(3 * width), 1), *grey = calloc((size_t)width, 1);
    uint8_t *unturned = calloc((size_t)bytes + 16, 1), *to = out;
    if (!colour || !black || !grey || !unturned) {
        free(colour), free(black), free(grey), free(unturned);
        return 1;
    }
    if (!p->mean_size) repeat(of_mean, mean, channels, width);
    for (int64_t k = 0; k < n; k++) {
        const Picture *each = pictures + k;
        repeat(colour, colours + k * channels, channels, width);
        for (int64_t y = 0; y < p->out_height; y++, to += bytes) {
            const uint8_t *x = window(each->pixels, each->stride, p->height, p->width, 3, each->top + y, each->left, width, black);
            const float *m = of_mean;
            if (p->mean_size)
                m = window(mean, 4 * channels * p->mean_size, p->mean_size, p->mean_size, 4 * channels, each->mean_top + y,
                           each->mean_left, width, of_mean);
            if (p->grey) {
                to_grey(grey, x, width);
                x = grey;
            }
            void *row = each->mirrored ? unturned : to;
            if (p->bf16)
                row_bf16(row, x, m, colour, p->scale, p->offset, values);
            else
                row_fp32(row, x, m, colour, p->scale, p->offset, values);
            if (!each->mirrored) continue;
            if (p->grey)
                (p->bf16 ? reverse_grey_bf16 : reverse_grey_fp32)(to, unturned, width);
            else
                (p->bf16 ? reverse_rgb_bf16 : reverse_rgb_fp32)(to, unturned, width);
        }
    }
    free(colour), free(black), free(grey), free(unturned);
    return 0;
}
