/* ReLU, response normalisation and max-pooling in one pass over channels-last pictures, forward and backward.

   With S_i = k + alpha * (sum of x_j^2 over the maps j of i's group with |i - j| <= half), y_i = x_i S_i^-beta, and the
   gradient g of y:  dx_i = g_i S_i^-beta - 2 alpha beta x_i * (sum of g_j y_j / S_j over the same j).

   A picture is worked through row by row: a row is read once, normalised in fp32 in a buffer that stays in the cache,
   rounded to the pictures' type as the plain form would be, and pooled. Backward does the forward rows again and keeps
   nothing but x. Of equal values in a pooling window the first one in reading order gets the gradient, as in torch.
   NaN stays NaN. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t height, width, maps, out_height, out_width, size, stride, groups, half;
    int32_t bf16, relu_before, relu_after;
    float k, alpha, beta;
} Shape;

static inline float widened(uint16_t u) {
    uint32_t bits = (uint32_t)u << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint16_t rounded(float f) { /* to the nearest bfloat16, ties to even */
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return f != f ? 0x7fc0 : (uint16_t)up;
}

static void load(float *restrict out, const void *restrict x, int64_t first, int64_t n, int bf16) {
    if (bf16) {
        const uint16_t *restrict in = (const uint16_t *)x + first;
        for (int64_t i = 0; i < n; i++) out[i] = widened(in[i]);
    } else {
        memcpy(out, (const float *)x + first, 4 * n);
    }
}

static void store(void *restrict x, int64_t first, const float *restrict in, int64_t n, int bf16) {
    if (bf16) {
        uint16_t *restrict out = (uint16_t *)x + first;
        for (int64_t i = 0; i < n; i++) out[i] = rounded(in[i]);
    } else {
        memcpy((float *)x + first, in, 4 * n);
    }
}

/* out_i = sum of v_j over |i - j| <= half within a group of n; `padded` has room for n + 2 half, with zeros at its ends */
static inline void window_sums(float *restrict out, const float *restrict padded, int64_t n, int64_t half) {
    if (half == 2) {
        for (int64_t i = 0; i < n; i++) out[i] = padded[i] + padded[i + 1] + padded[i + 2] + padded[i + 3] + padded[i + 4];
        return;
    }
    for (int64_t i = 0; i < n; i++) out[i] = padded[i];
    for (int64_t j = 1; j <= 2 * half; j++)
        for (int64_t i = 0; i < n; i++) out[i] += padded[i + j];
}

static inline void inverse_power(float *restrict out, const float *restrict s, int64_t n, float beta) {
    if (beta == 0.75f) {
        for (int64_t i = 0; i < n; i++) {
            float r = 1.0f / sqrtf(s[i]);
            out[i] = r * sqrtf(r);
        }
    } else {
        for (int64_t i = 0; i < n; i++) out[i] = powf(s[i], -beta);
    }
}

/* One row of pixels: x (after the ReLU), S, S^-beta and y, all fp32; `padded` is scratch. */
static void normalise_row(const Shape *p, const void *pictures, int64_t first, float *x, float *s, float *factor, float *y,
                          float *padded) {
    const int64_t n = p->width * p->maps, maps = p->maps / p->groups;
    load(x, pictures, first, n, p->bf16);
    if (p->relu_before)
        for (int64_t i = 0; i < n; i++) x[i] = x[i] < 0 ? 0 : x[i];
    float *inner = padded + p->half;
    if (p->half == 2 && p->beta == 0.75f) { /* the papers' constants, in one pass */
        const float k = p->k, alpha = p->alpha;
        for (int64_t at = 0; at < n; at += maps) {
            const float *restrict own = x + at, *restrict q = padded;
            float *restrict si = s + at, *restrict fi = factor + at, *restrict yi = y + at;
            for (int64_t i = 0; i < maps; i++) inner[i] = own[i] * own[i];
            for (int64_t i = 0; i < maps; i++) {
                const float sum = k + alpha * (q[i] + q[i + 1] + q[i + 2] + q[i + 3] + q[i + 4]), r = 1.0f / sqrtf(sum);
                si[i] = sum;
                fi[i] = r * sqrtf(r);
                yi[i] = own[i] * fi[i];
            }
        }
    } else {
        for (int64_t at = 0; at < n; at += maps) {
            for (int64_t i = 0; i < maps; i++) inner[i] = x[at + i] * x[at + i];
            window_sums(s + at, padded, maps, p->half);
        }
        for (int64_t i = 0; i < n; i++) s[i] = p->k + p->alpha * s[i];
        inverse_power(factor, s, n, p->beta);
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * factor[i];
    }
    if (p->bf16)
        for (int64_t i = 0; i < n; i++) y[i] = widened(rounded(y[i]));
}

static void *scratch(int64_t floats) { return calloc((size_t)floats, sizeof(float)); }

/* pictures (n, H, W, C) -> out (n, H', W', C). 0, or 1 when there is no memory. */
int forward(const Shape *p, const void *pictures, void *out, int64_t n_pictures) {
    const int64_t row = p->width * p->maps, out_row = p->out_width * p->maps, maps = p->maps;
    float *x = scratch(3 * row), *s = x + row, *factor = s + row;
    float *y = scratch(p->size * row), *pooled = scratch(out_row), *padded = scratch(maps + 2 * p->half);
    if (!x || !y || !pooled || !padded) {
        free(x), free(y), free(pooled), free(padded);
        return 1;
    }
    for (int64_t n = 0; n < n_pictures; n++) {
        int64_t done = 0; /* rows normalised; row r lies at r modulo size */
        for (int64_t oh = 0; oh < p->out_height; oh++) {
            const int64_t top = oh * p->stride, bottom = top + p->size < p->height ? top + p->size : p->height;
            for (done = done > top ? done : top; done < bottom; done++)
                normalise_row(p, pictures, (n * p->height + done) * row, x, s, factor, y + (done % p->size) * row, padded);
            for (int64_t ow = 0; ow < p->out_width; ow++) {
                const int64_t left = ow * p->stride, right = left + p->size < p->width ? left + p->size : p->width;
                float *restrict best = pooled + ow * maps;
                memcpy(best, y + (top % p->size) * row + left * maps, 4 * maps);
                for (int64_t h = top; h < bottom; h++)
                    for (int64_t w = left; w < right; w++) {
                        const float *restrict v = y + (h % p->size) * row + w * maps;
                        for (int64_t i = 0; i < maps; i++) best[i] = (v[i] > best[i]) | (v[i] != v[i]) ? v[i] : best[i];
                    }
            }
            if (p->relu_after)
                for (int64_t i = 0; i < out_row; i++) pooled[i] = pooled[i] < 0 ? 0 : pooled[i];
            store(out, (n * p->out_height + oh) * out_row, pooled, out_row, p->bf16);
        }
    }
    free(x), free(y), free(pooled), free(padded);
    return 0;
}

/* The gradient dy of a finished row becomes that of x and is written. */
static void finish_row(const Shape *p, void *dx, int64_t first, const float *x, const float *s, const float *factor,
                       const float *dy, float *out, float *padded) {
    const int64_t n = p->width * p->maps, maps = p->maps / p->groups;
    const float twice = 2 * p->alpha * p->beta;
    for (int64_t at = 0; at < n; at += maps) {
        float *restrict inner = padded + p->half, *restrict o = out + at;
        const float *restrict d = dy + at, *restrict xi = x + at, *restrict f = factor + at, *restrict si = s + at;
        for (int64_t i = 0; i < maps; i++) inner[i] = d[i] * xi[i] * f[i] / si[i];
        window_sums(o, padded, maps, p->half);
        for (int64_t i = 0; i < maps; i++) o[i] = d[i] * f[i] - twice * xi[i] * o[i];
    }
    if (p->relu_before)
        for (int64_t i = 0; i < n; i++) out[i] = x[i] <= 0 ? 0 : out[i];
    store(dx, first, out, n, p->bf16);
}

/* pictures and the gradient g (n, H', W', C) of the result -> dx (n, H, W, C). 0, or 1 when there is no memory. */
int backward(const Shape *p, const void *pictures, const void *g, void *dx, int64_t n_pictures) {
    const int64_t row = p->width * p->maps, out_row = p->out_width * p->maps, maps = p->maps, ring = p->size;
    float *x = scratch(5 * ring * row), *s = x + ring * row, *factor = s + ring * row, *y = factor + ring * row;
    float *dy = y + ring * row, *out = scratch(row), *gs = scratch(out_row), *padded = scratch(maps + 2 * p->half);
    float *best = scratch(maps);
    int32_t *where = scratch(maps);
    if (!x || !out || !gs || !padded || !best || !where) {
        free(x), free(out), free(gs), free(padded), free(best), free(where);
        return 1;
    }
    for (int64_t n = 0; n < n_pictures; n++) {
        int64_t begun = 0, finished = 0; /* rows; row r lies at r modulo size */
        for (int64_t oh = 0; oh <= p->out_height; oh++) {
            const int last = oh == p->out_height;
            const int64_t top = last ? p->height : oh * p->stride;
            const int64_t bottom = last || top + p->size > p->height ? p->height : top + p->size;
            for (; finished < top && finished < p->height; finished++) { /* no later window reaches them */
                const int64_t at = (finished % ring) * row;
                if (finished >= begun) { /* between windows, or behind the last one */
                    normalise_row(p, pictures, (n * p->height + finished) * row, x + at, s + at, factor + at, y + at, padded);
                    memset(dy + at, 0, 4 * row);
                    begun = finished + 1;
                }
                finish_row(p, dx, (n * p->height + finished) * row, x + at, s + at, factor + at, dy + at, out, padded);
            }
            if (last) break;
            for (; begun < bottom; begun++) {
                const int64_t at = (begun % ring) * row;
                normalise_row(p, pictures, (n * p->height + begun) * row, x + at, s + at, factor + at, y + at, padded);
                memset(dy + at, 0, 4 * row);
            }
            load(gs, g, (n * p->out_height + oh) * out_row, out_row, p->bf16);
            for (int64_t ow = 0; ow < p->out_width; ow++) {
                const int64_t left = ow * p->stride, right = left + p->size < p->width ? left + p->size : p->width;
                const float *restrict gw = gs + ow * maps;
                memcpy(best, y + (top % ring) * row + left * maps, 4 * maps);
                memset(where, 0, 4 * maps);
                int32_t place = 0;
                for (int64_t h = top; h < bottom; h++)
                    for (int64_t w = left; w < right; w++, place++) {
                        const float *restrict v = y + (h % ring) * row + w * maps;
                        for (int64_t i = 0; i < maps; i++) {
                            const int better = (v[i] > best[i]) | (v[i] != v[i]);
                            best[i] = better ? v[i] : best[i];
                            where[i] = better ? place : where[i];
                        }
                    }
                place = 0;
                for (int64_t h = top; h < bottom; h++)
                    for (int64_t w = left; w < right; w++, place++) {
                        float *restrict d = dy + (h % ring) * row + w * maps;
                        if (p->relu_after)
                            for (int64_t i = 0; i < maps; i++) d[i] += (where[i] == place) & !(best[i] <= 0) ? gw[i] : 0;
                        else
                            for (int64_t i = 0; i < maps; i++) d[i] += where[i] == place ? gw[i] : 0;
                    }
            }
        }
    }
    free(x), free(out), free(gs), free(padded), free(best), free(where);
    return 0;
}
