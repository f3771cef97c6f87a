/* LeNet-5 from the pictures to F6, forward and backward: LANES pictures at a time, one in each lane of a vector.

   A map lies as rows of pixels, each the vector of its LANES values, so that every loop is over vectors whatever the
   maps' sizes, and a kernel's weight is the same for all lanes. With T(x) = A tanh(2x/3), for each map of a stage:
   c = T(convolution),  m = the mean of each 2x2 square of c,  s = T(weight m + bias).
   T'(x) = 2/(3A) (A^2 - T(x)^2), so that backward needs what forward gave alone. */

#include "vectors.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define A 1.7159f
#define SLOPE 0.66666667f /* 2/3 */
#define MAGIC 0x1.8p23f   /* added, it leaves no bits behind the point: the nearest whole number is in the lowest ones */
#define LOG2_E 1.44269504f
#define LN_2_HIGH 0.693359375f /* nine bits, so that its product with a small whole number is exact */
#define LN_2_LOW (-2.12194440e-4f)
#define LARGEST 20.0f /* tanh(10) is 1 in float32 */

enum { K = 5, KERNEL = K * K }; /* a kernel's side, and its weights */
enum { IN = 32, C1 = 28, S2 = 14, C3 = 10, S4 = 5 }; /* sides of the maps */
enum { MAPS1 = 6, MAPS3 = 16, FEATURES = MAPS3 * S4 * S4, C5 = 120, F6 = 84 };
enum { OUT_AT_ONCE = 12, IN_AT_ONCE = 8 }; /* sums of a fully connected layer that stay in registers */
#define INLINE static inline __attribute__((always_inline))

/* The places of the weights, and of their gradients */
enum { C1_W, C1_B, S2_W, S2_B, C3_W, C3_B, S4_W, S4_B, C5_W, C5_B, F6_W, F6_B };

typedef struct {
    int64_t n, maps;                 /* pictures, and maps of each */
    int64_t by_map, by_pixel;        /* how far apart S4's maps and pixels are among the inputs of C5 */
    int64_t connections;             /* of C3, by rising output */
    const int64_t *outputs, *inputs; /* of each */
} Shape;

/* What forward leaves of LANES pictures, in vectors */
typedef struct {
    V *x, *c1, *s2, *c3, *s4, *c5, *f6;
} Stages;

static Stages stages(const Shape *p, float *kept, int64_t block) {
    enum { REST = MAPS1 * (C1 * C1 + S2 * S2) + MAPS3 * C3 * C3 + FEATURES + C5 + F6 };
    Stages t;
    t.x = (V *)kept + block * (p->maps * IN * IN + REST);
    t.c1 = t.x + p->maps * IN * IN, t.s2 = t.c1 + MAPS1 * C1 * C1, t.c3 = t.s2 + MAPS1 * S2 * S2;
    t.s4 = t.c3 + MAPS3 * C3 * C3, t.c5 = t.s4 + FEATURES, t.f6 = t.c5 + C5;
    return t;
}

/* Whether C3's table is one: its outputs rising, all maps there. Who reads beyond S2 would read others' memory. */
int lenet5_takes(const Shape *p) {
    for (int64_t c = 0; c < p->connections; c++) {
        const int64_t before = c ? p->outputs[c - 1] : 0;
        if (p->outputs[c] < before || p->outputs[c] >= MAPS3 || p->inputs[c] < 0 || p->inputs[c] >= MAPS1) return 0;
    }
    return 1;
}

/* How many floats the stages of n pictures are */
int64_t lenet5_floats(const Shape *p) {
    const int64_t blocks = (p->n + LANES - 1) / LANES;
    return (stages(p, NULL, blocks).x - (V *)NULL) * LANES;
}

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

static void squash(V *x, int64_t n) {
    float *restrict each = (float *)x;
    for (int64_t i = 0; i < n * LANES; i++) each[i] = scaled_tanh(each[i]);
}

/* T'(x) from t = T(x); never negative, and 0 where T is A */
static inline V slope_at(V t) { return SLOPE / A * ((A - t) * (A + t)); }

static inline float sum(V v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

/* The output and its loss */

static inline float distance(const float *a, const float *b, int64_t n) { /* squared */
    V sums = {0};
    float rest = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += (at(a + i) - at(b + i)) * (at(a + i) - at(b + i));
    for (; i < n; i++) rest += (a[i] - b[i]) * (a[i] - b[i]);
    return sum(sums) + rest;
}

/* Eq. 7 and eq. 9: features (n, F6) and codes (k, F6), k <= 256 -> the gradient of the mean loss (n, F6), that, and how many
   pictures are nearer to another code than to their label's. 0, or 1 for a label that is none. */
int lenet5_loss(int64_t n, int64_t k, float j, const float *features, const float *codes, const int64_t *labels, float *slope,
                float *mean, int64_t *wrong) {
    float shares[256], loss = 0;
    *wrong = 0;
    for (int64_t i = 0; i < n; i++, features += F6, slope += F6) {
        if (labels[i] < 0 || labels[i] >= k) return 1;
        float least = j, sum_of = 0;
        int64_t nearest = 0;
        for (int64_t c = 0; c < k; c++) {
            shares[c] = distance(features, codes + c * F6, F6);
            if (shares[c] < shares[nearest]) nearest = c;
            least = shares[c] < least ? shares[c] : least;
        }
        loss += shares[labels[i]] - least;
        *wrong += nearest != labels[i];
        for (int64_t c = 0; c < k; c++) sum_of += shares[c] = expf(least - shares[c]);
        sum_of += expf(least - j);
        loss += logf(sum_of);
        memset(slope, 0, F6 * sizeof *slope);
        for (int64_t c = 0; c < k; c++) {
            const float by = 2 * ((c == labels[i]) - shares[c] / sum_of) / (float)n;
            for (int64_t d = 0; d < F6; d++) slope[d] += by * (features[d] - codes[c * F6 + d]);
        }
    }
    *mean = loss / (float)n;
    return 0;
}

/* Forward */

/* An output map of a convolution from its input maps, `at_once` pixels of a row in registers; w: the kernels in order. */
INLINE void convolve(const V *x, V *y, int side, int out, const float *w, float bias, const int64_t *inputs, int64_t n,
                     const int at_once) {
    for (int row = 0; row < out; row++)
        for (int first = 0; first < out; first += at_once, y += at_once) {
            V total[at_once];
            for (int j = 0; j < at_once; j++) total[j] = bias - (V){0};
            for (int64_t c = 0; c < n; c++) {
                const V *from = x + (inputs[c] * side + row) * side + first;
                const float *kernel = w + c * KERNEL;
                for (int ky = 0; ky < K; ky++, from += side, kernel += K)
#pragma GCC unroll 16
                    for (int q = 0; q < at_once + K - 1; q++)
#pragma GCC unroll 16
                        for (int kx = 0; kx < K; kx++)
                            if (q - kx >= 0 && q - kx < at_once) total[q - kx] += kernel[kx] * from[q];
            }
            for (int j = 0; j < at_once; j++) y[j] = total[j];
        }
}

/* c -> T(c) in place, and s; by_map, by_pixel: how far apart the results lie */
static void pool(V *c, V *s, int maps, int side, const float *w, const float *b, int64_t by_map, int64_t by_pixel) {
    squash(c, (int64_t)maps * side * side);
    for (int map = 0; map < maps; map++)
        for (int y = 0; y < side / 2; y++)
            for (int x = 0; x < side / 2; x++) {
                const V *at = c + (map * side + 2 * y) * side + 2 * x;
                const V mean = 0.25f * (at[0] + at[1] + at[side] + at[side + 1]);
                s[map * by_map + (y * (side / 2) + x) * by_pixel] = w[map] * mean + b[map];
            }
    squash(s, (int64_t)maps * (side / 2) * (side / 2));
}

/* y = T(W x + b) */
static void connect(const V *x, V *y, int n_in, int n_out, const float *w, const float *b) {
    for (int first = 0; first < n_out; first += OUT_AT_ONCE) {
        V total[OUT_AT_ONCE];
        for (int o = 0; o < OUT_AT_ONCE; o++) total[o] = b[first + o] - (V){0};
        for (int i = 0; i < n_in; i++)
#pragma GCC unroll 16
            for (int o = 0; o < OUT_AT_ONCE; o++) total[o] += w[(first + o) * n_in + i] * x[i];
        for (int o = 0; o < OUT_AT_ONCE; o++) y[first + o] = total[o];
    }
    squash(y, n_out);
}

/* Pictures (n, maps, 32, 32) -> features (n, 84), and the stages in `kept`. 0, or 1 when there is no memory. */
int lenet5_forward(const Shape *p, const float *images, const float *const *w, float *kept, float *features) {
    const int64_t size = p->maps * IN * IN;
    int64_t *all = malloc(sizeof *all * (size_t)p->maps); /* C1 sees all maps */
    if (!all) return 1;
    for (int64_t i = 0; i < p->maps; i++) all[i] = i;
    for (int64_t done = 0; done < p->n; done += LANES) {
        const Stages t = stages(p, kept, done / LANES);
        const int64_t n = p->n - done < LANES ? p->n - done : LANES;
        for (int64_t i = 0; i < size; i++) { /* lanes without a picture are 0 */
            float lanes[LANES] = {0};
            for (int64_t k = 0; k < n; k++) lanes[k] = images[(done + k) * size + i];
            t.x[i] = at(lanes);
        }
        for (int o = 0; o < MAPS1; o++)
            convolve(t.x, t.c1 + o * C1 * C1, IN, C1, w[C1_W] + o * p->maps * KERNEL, w[C1_B][o], all, p->maps, 7);
        pool(t.c1, t.s2, MAPS1, C1, w[S2_W], w[S2_B], S2 * S2, 1);
        for (int64_t o = 0, c = 0; o < MAPS3; o++) {
            const int64_t first = c;
            while (c < p->connections && p->outputs[c] == o) c++;
            convolve(t.s2, t.c3 + o * C3 * C3, S2, C3, w[C3_W] + first * KERNEL, w[C3_B][o], p->inputs + first, c - first,
                     10);
        }
        pool(t.c3, t.s4, MAPS3, C3, w[S4_W], w[S4_B], p->by_map, p->by_pixel);
        connect(t.s4, t.c5, FEATURES, C5, w[C5_W], w[C5_B]);
        connect(t.c5, t.f6, C5, F6, w[F6_W], w[F6_B]);
        for (int64_t k = 0; k < n; k++)
            for (int o = 0; o < F6; o++) features[(done + k) * F6 + o] = t.f6[o][k];
    }
    free(all);
    return 0;
}

/* Backward. Gradients of weights are added to what is there. */

/* g, the gradient of y = T(W x + b), becomes that of W x + b; g_x is x's. turned: room for LANES x (n_in + n_out). */
static void connect_back(const V *x, const V *y, V *g, V *g_x, int n_in, int n_out, const float *w, float *restrict dw,
                         float *restrict db, float *turned) {
    float *restrict g_rows = turned + LANES * n_in;
    for (int o = 0; o < n_out; o++) g[o] *= slope_at(y[o]), db[o] += sum(g[o]);
    for (int k = 0; k < LANES; k++) {
        for (int i = 0; i < n_in; i++) turned[k * n_in + i] = x[i][k];
        for (int o = 0; o < n_out; o++) g_rows[k * n_out + o] = g[o][k];
    }
    for (int o = 0; o < n_out; o++)
        for (int k = 0; k < LANES; k += 4) {
            const float *restrict row = turned + k * n_in, *each = g_rows + k * n_out + o;
            const float g0 = each[0], g1 = each[n_out], g2 = each[2 * n_out], g3 = each[3 * n_out];
            for (int i = 0; i < n_in; i++)
                dw[o * n_in + i] += g0 * row[i] + g1 * row[n_in + i] + g2 * row[2 * n_in + i] + g3 * row[3 * n_in + i];
        }
    for (int first = 0; first < n_in; first += IN_AT_ONCE) {
        V total[IN_AT_ONCE] = {{0}};
        for (int o = 0; o < n_out; o++)
#pragma GCC unroll 16
            for (int i = 0; i < IN_AT_ONCE; i++) total[i] += w[o * n_in + first + i] * g[o];
        for (int i = 0; i < IN_AT_ONCE; i++) g_x[first + i] = total[i];
    }
}

/* From the gradient g_s of s to g, that of what c is T of, and to those of the weights, and of c's bias */
static void pool_back(const V *c, const V *s, const V *g_s, V *g, int maps, int side, const float *w, float *dw, float *db,
                      float *d_bias, int64_t by_map, int64_t by_pixel) {
    for (int map = 0; map < maps; map++) {
        V of_weight = {0}, of_bias = {0}, of_c = {0};
        for (int y = 0; y < side / 2; y++)
            for (int x = 0; x < side / 2; x++) {
                const int64_t from = map * by_map + (y * (side / 2) + x) * by_pixel, to = (map * side + 2 * y) * side + 2 * x;
                const V *at = c + to, du = g_s[from] * slope_at(s[from]), d = 0.25f * w[map] * du;
                of_weight += du * (0.25f * (at[0] + at[1] + at[side] + at[side + 1]));
                of_bias += du;
                g[to] = d * slope_at(at[0]), g[to + 1] = d * slope_at(at[1]);
                g[to + side] = d * slope_at(at[side]), g[to + side + 1] = d * slope_at(at[side + 1]);
                of_c += g[to] + g[to + 1] + g[to + side] + g[to + side + 1];
            }
        dw[map] += sum(of_weight), db[map] += sum(of_bias), d_bias[map] += sum(of_c);
    }
}

/* `rows` rows of the gradient of a kernel between an input map x and an output map with gradient g */
INLINE void kernel_rows(const V *x, const V *g, int side, int out, V *dw, const int rows) {
    V total[rows * K];
    for (int k = 0; k < rows * K; k++) total[k] = (V){0};
    for (int y = 0; y < out; y++)
        for (int i = 0; i < out; i++) {
            const V here = g[y * out + i], *from = x + y * side + i;
#pragma GCC unroll 16
            for (int ky = 0; ky < rows; ky++)
#pragma GCC unroll 16
                for (int kx = 0; kx < K; kx++) total[ky * K + kx] += here * from[ky * side + kx];
        }
    for (int k = 0; k < rows * K; k++) dw[k] += total[k];
}

static void kernel_back(const V *x, const V *g, int side, int out, V *dw) {
#if LANES == 16 /* and 32 registers */
    kernel_rows(x, g, side, out, dw, K);
#else
    kernel_rows(x, g, side, out, dw, 2);
    kernel_rows(x + 2 * side, g, side, out, dw + 2 * K, 2);
    kernel_rows(x + 4 * side, g, side, out, dw + 4 * K, 1);
#endif
}

/* Half a row, S2 / 2 pixels from `first` on, of the gradient of S2's map: what C3's kernels pass back from g */
INLINE void half_row(const Shape *p, const V *g, V *g_x, int64_t map, int row, const float *w, const int first) {
    enum { HALF = S2 / 2 };
    const int begin = first ? C3 - HALF : 0; /* in a row of g */
    V total[HALF] = {{0}};
    for (int64_t c = 0; c < p->connections; c++) {
        if (p->inputs[c] != map) continue;
        for (int ky = row < C3 ? 0 : row - C3 + 1; ky < K && ky <= row; ky++) {
            const V *from = g + (p->outputs[c] * C3 + row - ky) * C3 + begin;
            const float *kernel = w + c * KERNEL + ky * K;
#pragma GCC unroll 16
            for (int i = 0; i < HALF; i++)
#pragma GCC unroll 16
                for (int kx = 0; kx < K; kx++) {
                    const int to = begin + i + kx - first;
                    if (to >= 0 && to < HALF) total[to] += kernel[kx] * from[i];
                }
        }
    }
    for (int i = 0; i < HALF; i++) g_x[i] = total[i];
}

/* From `kept`, and the gradient g (n, 84) of the features, to the weights' gradients dw. 0, or 1 without memory. */
int lenet5_backward(const Shape *p, const float *const *w, float *kept, const float *g, float *const *dw) {
    const int64_t kernels1 = MAPS1 * p->maps, kernels = kernels1 + p->connections;
    enum { ROOM = MAPS1 * (C1 * C1 + S2 * S2) + MAPS3 * C3 * C3 + 2 * FEATURES + 2 * C5 + F6 };
    const size_t bytes = ((size_t)(kernels * KERNEL) + ROOM) * sizeof(V);
    V *const d1 = aligned_alloc(sizeof(V), bytes), *const d3 = d1 + kernels1 * KERNEL; /* of the kernels, by lanes */
    if (!d1) return 1;
    memset(d1, 0, bytes);
    V *const g1 = d1 + kernels * KERNEL, *const g2 = g1 + MAPS1 * C1 * C1, *const g3 = g2 + MAPS1 * S2 * S2;
    V *const g4 = g3 + MAPS3 * C3 * C3, *const g5 = g4 + FEATURES, *const g6 = g5 + C5, *const turned = g6 + F6;
    for (int64_t done = 0; done < p->n; done += LANES) {
        const Stages t = stages(p, kept, done / LANES);
        for (int o = 0; o < F6; o++)
            for (int64_t k = 0; k < LANES; k++) g6[o][k] = done + k < p->n ? g[(done + k) * F6 + o] : 0;
        connect_back(t.c5, t.f6, g6, g5, C5, F6, w[F6_W], dw[F6_W], dw[F6_B], (float *)turned);
        connect_back(t.s4, t.c5, g5, g4, FEATURES, C5, w[C5_W], dw[C5_W], dw[C5_B], (float *)turned);
        pool_back(t.c3, t.s4, g4, g3, MAPS3, C3, w[S4_W], dw[S4_W], dw[S4_B], dw[C3_B], p->by_map, p->by_pixel);
        for (int64_t c = 0; c < p->connections; c++)
            kernel_back(t.s2 + p->inputs[c] * S2 * S2, g3 + p->outputs[c] * C3 * C3, S2, C3, d3 + c * KERNEL);
        for (int map = 0; map < MAPS1; map++)
            for (int row = 0; row < S2; row++) {
                half_row(p, g3, g2 + (map * S2 + row) * S2, map, row, w[C3_W], 0);
                half_row(p, g3, g2 + (map * S2 + row) * S2 + S2 / 2, map, row, w[C3_W], S2 / 2);
            }
        pool_back(t.c1, t.s2, g2, g1, MAPS1, C1, w[S2_W], dw[S2_W], dw[S2_B], dw[C1_B], S2 * S2, 1);
        for (int64_t c = 0; c < kernels1; c++)
            kernel_back(t.x + c % p->maps * IN * IN, g1 + c / p->maps * C1 * C1, IN, C1, d1 + c * KERNEL);
    }
    for (int64_t k = 0; k < kernels * KERNEL; k++)
        *(k < kernels1 * KERNEL ? dw[C1_W] + k : dw[C3_W] + k - kernels1 * KERNEL) += sum(d1[k]);
    free(d1);
    return 0;
}
