/* LeNet-5's scaled tanh, sub-sampling and scaled tanh in one pass over planes, forward and backward.

   With T(x) = A tanh(2x/3), for each plane of a map:  c = T(x),  m = the mean of each 2x2 square of c,
   s = T(weight m + bias).  T'(x) = 2/(3A) (A^2 - T(x)^2), so that backward needs c and s alone.

   A plane stays in the nearest cache from the first loop over it to the last. The loops hold nothing that a compiler
   can't turn into vectors of any width: sums go by halves, and tanh has no branch. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define A 1.7159f
#define SLOPE 0.66666667f /* 2/3 */

typedef struct {
    int64_t maps, height, width;
} Plane;

#define MAGIC 0x1.8p23f /* added, it leaves no bits behind the point: the nearest whole number is in the lowest ones */
#define LOG2_E 1.44269504f
#define LN_2_HIGH 0.693359375f /* nine bits, so that its product with a small whole number is exact */
#define LN_2_LOW (-2.12194440e-4f)
#define LARGEST 20.0f /* tanh(10) is 1 in float32 */

/* T(x) by E = exp(y) - 1 with y = 4|x|/3: A (E / (E + 2)). y = k ln 2 + r with |r| <= ln(2) / 2, and E = 2^k (exp(r) - 1)
   + 2^k - 1: no difference of nearly equal numbers, so that the relative error is a few roundings for any x. The
   polynomial is Taylor's, whose next term is 2e-8 of the sum. NaN stays NaN, and 0 its sign. */
static inline float scaled_tanh(float x) {
    int32_t bits, sign;
    memcpy(&bits, &x, 4);
    sign = bits & INT32_MIN;
    float y = 2 * SLOPE * x;
    y = y < 0 ? -y : y;
    y = y > LARGEST ? LARGEST : y;
    const float shifted = y * LOG2_E + MAGIC, k = shifted - MAGIC;
    const float r = y - k * LN_2_HIGH - k * LN_2_LOW;
    const float tail = 1.f / 2 + r * (1.f / 6 + r * (1.f / 24 + r * (1.f / 120 + r * (1.f / 720 + r * (1.f / 5040)))));
    const float exp_less_one = r + r * r * tail;
    float power; /* 2^k */
    memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + 0x3f800000;
    memcpy(&power, &bits, 4);
    const float e = power * exp_less_one + (power - 1);
    float t = A * (e / (e + 2)); /* at most A */
    memcpy(&bits, &t, 4);
    bits |= sign;
    memcpy(&t, &bits, 4);
    return t;
}

/* T'(x) from t = T(x); never negative, and 0 where T is A */
static inline float slope_at(float t) { return SLOPE / A * ((A - t) * (A + t)); }

/* The mean of each 2x2 square of two rows */
static inline void means(const float *restrict top, const float *restrict bottom, float *restrict m, int64_t n) {
    for (int64_t j = 0; j < n; j++) m[j] = 0.25f * (top[2 * j] + top[2 * j + 1] + bottom[2 * j] + bottom[2 * j + 1]);
}

/* x (n, H, W) -> c alike and s (n, H/2, W/2); plane i is of map i modulo `maps`, which has its weight and bias. */
int tanh_pool_forward(const Plane *p, const float *restrict x, const float *weight, const float *bias,
                      float *restrict c, float *restrict s, int64_t n_planes) {
    const int64_t rows = p->height / 2, columns = p->width / 2, size = p->height * p->width;
    for (int64_t plane = 0; plane < n_planes; plane++, x += size, c += size, s += rows * columns) {
        const float w = weight[plane % p->maps], b = bias[plane % p->maps];
        for (int64_t i = 0; i < size; i++) c[i] = scaled_tanh(x[i]);
        for (int64_t i = 0; i < rows; i++) {
            const float *top = c + 2 * i * p->width;
            means(top, top + p->width, s + i * columns, columns);
        }
        for (int64_t i = 0; i < rows * columns; i++) s[i] = scaled_tanh(w * s[i] + b);
    }
    return 0;
}

/* By pairs of halves, as vectors add; n > 0; what was summed is lost. */
static float sum(float *v, int64_t n) {
    for (int64_t half; n > 1; n = half) {
        half = (n + 1) / 2;
        for (int64_t i = 0; i < n - half; i++) v[i] += v[i + half];
    }
    return v[0];
}

/* c, s, the gradient g_c of c, unless it is missing, and g_s of s -> dx like c, and each plane's part of the gradients of
   its map's weight and bias, (n,) each. 0, or 1 when there is no memory. */
int tanh_pool_backward(const Plane *p, const float *restrict c, const float *restrict s, const float *weight,
                       const float *restrict g_c, const float *restrict g_s, float *restrict dx, float *d_weight,
                       float *d_bias, int64_t n_planes) {
    const int64_t rows = p->height / 2, columns = p->width / 2, width = p->width, size = p->height * width;
    float *restrict d = calloc((size_t)(size + 2 * rows * columns), sizeof *d); /* an odd last row and column stay 0 */
    if (!d) return 1;
    float *restrict du = d + size, *restrict m = du + rows * columns;
    for (int64_t plane = 0; plane < n_planes; plane++, c += size, dx += size, s += rows * columns, g_s += rows * columns) {
        const float quarter = 0.25f * weight[plane % p->maps];
        for (int64_t i = 0; i < rows; i++) means(c + 2 * i * width, c + (2 * i + 1) * width, m + i * columns, columns);
        for (int64_t i = 0; i < rows * columns; i++) du[i] = g_s[i] * slope_at(s[i]), m[i] *= du[i];
        for (int64_t i = 0; i < rows; i++) {
            float *restrict row = d + 2 * i * width;
            for (int64_t j = 0; j < columns; j++) row[2 * j] = row[2 * j + 1] = quarter * du[i * columns + j];
            memcpy(row + width, row, 2 * (size_t)columns * sizeof *row);
        }
        d_weight[plane] = sum(m, rows * columns), d_bias[plane] = sum(du, rows * columns);
        if (g_c)
            for (int64_t i = 0; i < size; i++) dx[i] = (d[i] + g_c[plane * size + i]) * slope_at(c[i]);
        else
            for (int64_t i = 0; i < size; i++) dx[i] = d[i] * slope_at(c[i]);
    }
    free(d);
    return 0;
}
