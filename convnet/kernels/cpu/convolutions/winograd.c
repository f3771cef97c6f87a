/* Winograd's convolutions: tiles of 4 x 4 pixels from 36 products (kernels of 3 x 3) or 64 (5 x 5).

   A polynomial of n coefficients is known by its values at n points, the last of them infinity (its last coefficient).
   With the points 0, +-a, +-b (5 x 5: +-c) and infinity, on a row of pixels, kernels, results or gradients:
     points(d) = B^T d        what a tile's pixels are multiplied as
     values(g) = A g or G w   of a row of gradients, or of weights, which are divided by `scale`
     sums(m) = A^T m or G^T m   their transpose: of products to results, or to gradients of weights
   each applied to the columns of a square and then to its rows. The points have small rounding errors
   (kernels/winograd.py); all constants but the scales are exact in floats.

   Pictures are float32 (n, height, width, maps). At a stride of 2 a convolution is one at stride 1 over the four pictures
   of every other row and column: their maps lie one behind the other. Values of the maps of a tile lie in vectors:
   matrix[product][vector of maps][row][lane], a row being a tile, or a map of the other side; lanes past the last map
   are 0. */

#include <stdint.h>

#include "products.h"

#define TILE 4
#define SIDE 8               /* the most pixels that a row of a tile reads */
#define AT_ONCE (32 / LANES) /* vectors of maps whose products are summed together: sums of sums round less */

typedef struct {
    int64_t height, width, maps, stride; /* pictures, and the stride of the convolution in them */
    int64_t before;                      /* zeros above and left of them, in pixels of each of the stride^2 pictures */
} Grid;

typedef struct {
    Grid in, out;         /* out: the tiles'; in a pass forward it has no zeros */
    int64_t down, across; /* tiles */
    int64_t size, tiles;  /* of a row of a kernel; worked on at once */
    int64_t turned;       /* kernels are those of the pictures' gradient, in and out being exchanged */
} Convolution;

typedef struct {
    float at[3], scale[4];     /* a, b, c; of 0, a, b, c: products of the differences to all other points */
    float others[3][3], all[4]; /* coefficients of the product of x^2 - the other points', and of all points' squares */
} Points;

#define A (0.75f * 0.75f)
#define B (1.5f * 1.5f)
static const Points OF_3 = {{0.75f, 1.5f},
                            {A * B, 2 * A * (A - B), 2 * B * (B - A)},
                            {{-B, 1}, {-A, 1}},
                            {A * B, -A - B, 1}};
#undef A
#undef B
static const Points OF_5 = {{0.5f, 1, 2}, /* squares: 1/4, 1, 4 */
                            {-1, 2 * 0.25f * (0.25f - 1) * (0.25f - 4), 2 * (1 - 0.25f) * (1 - 4), 8 * (4 - 0.25f) * (4 - 1)},
                            {{4, -5, 1}, {1, -4.25f, 1}, {0.25f, -1.25f, 1}},
                            {-1, 5.25f, -5.25f, 1}};

ALWAYS void points(int pairs, int n, int divided, const V *d, V *out, int64_t step) { /* `step` vectors to the next */
    const Points *p = pairs == 2 ? &OF_3 : &OF_5;
    V zero = p->all[0] * d[0], end = p->all[0] * d[step];
    for (int t = 1; t <= pairs; t++) {
        zero += p->all[t] * d[2 * t * step];
        end += p->all[t] * d[(2 * t + 1) * step];
    }
    for (int k = 0; k < pairs; k++) {
        V even = p->others[k][0] * d[2 * step], odd = p->others[k][0] * d[step];
        for (int t = 1; t < pairs; t++) {
            even += p->others[k][t] * d[(2 * t + 2) * step];
            odd += p->others[k][t] * d[(2 * t + 1) * step];
        }
        out[(2 * k + 1) * step] = even + p->at[k] * odd;
        out[(2 * k + 2) * step] = even - p->at[k] * odd;
    }
    out[0] = zero;
    out[(2 * pairs + 1) * step] = end;
    (void)n, (void)divided;
}

ALWAYS void values(int pairs, int n, int divided, const V *g, V *out, int64_t step) {
    const Points *p = pairs == 2 ? &OF_3 : &OF_5;
    out[0] = divided ? g[0] * (1 / p->scale[0]) : g[0];
    for (int k = 0; k < pairs; k++) {
        const float square = p->at[k] * p->at[k], by = divided ? 1 / p->scale[k + 1] : 1;
        V even = g[(n - 1) / 2 * 2 * step], odd = g[(n / 2 * 2 - 1) * step]; /* the last of each kind */
        for (int t = (n - 1) / 2 * 2 - 2; t >= 0; t -= 2) even = g[t * step] + square * even;
        for (int t = n / 2 * 2 - 3; t >= 0; t -= 2) odd = g[t * step] + square * odd;
        out[(2 * k + 1) * step] = by * even + by * p->at[k] * odd;
        out[(2 * k + 2) * step] = by * even - by * p->at[k] * odd;
    }
    out[(2 * pairs + 1) * step] = g[(n - 1) * step];
}

ALWAYS void sums(int pairs, int n, int divided, const V *m, V *out, int64_t step) {
    const Points *p = pairs == 2 ? &OF_3 : &OF_5;
    V y[TILE + 1];
    y[0] = divided ? m[0] * (1 / p->scale[0]) : m[0];
    for (int t = 1; t < n; t++) y[t] = (V){0};
    for (int k = 0; k < pairs; k++) {
        const float by = divided ? 1 / p->scale[k + 1] : 1, square = p->at[k] * p->at[k];
        const V plus = m[(2 * k + 1) * step], minus = m[(2 * k + 2) * step];
        const V even = plus + minus, odd = plus - minus;
        float of_even = by, of_odd = by * p->at[k];
        for (int t = 0; t < n; t += 2, of_even *= square) y[t] += of_even * even;
        for (int t = 1; t < n; t += 2, of_odd *= square) y[t] += of_odd * odd;
    }
    y[n - 1] += m[(2 * pairs + 1) * step];
    for (int t = 0; t < n; t++) out[t * step] = y[t];
}

typedef void Rule(int, int, int, const V *, V *, int64_t);

/* `rule` on the columns of a square (n_in x n_in), then on the rows: (n_out x n_out). */
ALWAYS void both_ways(Rule rule, int pairs, int n, int divided, const V *in, V *out, int n_in, int n_out) {
    V half[SIDE * SIDE];
    for (int j = 0; j < n_in; j++) rule(pairs, n, divided, in + j, half + j, SIDE);
    for (int i = 0; i < n_out; i++) rule(pairs, n, divided, half + SIDE * i, out + SIDE * i, 1);
}

static inline V some(const float *x, int64_t n) { /* of which only so many are there */
    V v = {0};
    if (n >= LANES) return at(x);
    memcpy(&v, x, 4 * n);
    return v;
}
static inline void put_some(float *x, V v, int64_t n) { memcpy(x, &v, n >= LANES ? sizeof v : 4 * (size_t)n); }

static inline int64_t vectors(int64_t maps) { return (maps + LANES - 1) / LANES; }
static inline int64_t depth(const Grid *g) { return g->stride * g->stride * vectors(g->maps); } /* vectors */
static inline int64_t rows(int64_t tiles) { return tiles + 1; } /* of a matrix: not all in one place of a cache */

/* Where a tile begins in the picture of the maps' phase: its first row and column, those before it included. */
typedef struct {
    const float *picture;
    int64_t top, left;
} Place;

static inline Place place(const Convolution *c, const Grid *g, const float *pictures, int64_t tile) {
    const int64_t row = TILE * (tile / c->across % c->down), column = TILE * (tile % c->across);
    const int64_t number = tile / (c->across * c->down);
    return (Place){pictures + number * g->height * g->width * g->maps, row - g->before, column - g->before};
}

/* Squares of n_in pixels of tiles first to last - 1 by `rule`, of vectors v_first to v_last - 1, into their matrix. */
ALWAYS void taken(Rule rule, int pairs, int n_in, const Convolution *c, const Grid *g, const float *pictures, float *out,
                  int64_t first, int64_t last, int64_t v_first, int64_t v_last) {
    const int side = 2 * pairs + 2;
    const int64_t each = vectors(g->maps), step = (v_last - v_first) * rows(c->tiles) * LANES;
    V in[SIDE * SIDE], found[SIDE * SIDE];
    for (int64_t tile = first; tile < last; tile++) {
        const Place p = place(c, g, pictures, tile);
        for (int64_t v = v_first; v < v_last; v++) {
            const int64_t phase = v / each, map = v % each * LANES;
            for (int i = 0; i < n_in; i++)
                for (int j = 0; j < n_in; j++) {
                    const int64_t y = g->stride * (p.top + i) + phase / g->stride;
                    const int64_t x = g->stride * (p.left + j) + phase % g->stride;
                    const int inside = y >= 0 && y < g->height && x >= 0 && x < g->width;
                    const float *pixel = p.picture + (y * g->width + x) * g->maps + map;
                    in[SIDE * i + j] = inside ? some(pixel, g->maps - map) : (V){0};
                }
            both_ways(rule, pairs, n_in, 0, in, found, n_in, side);
            float *value = out + ((v - v_first) * rows(c->tiles) + tile - first) * LANES;
            for (int k = 0; k < side * side; k++) put(value + k * step, found[SIDE * (k / side) + k % side]);
        }
    }
}

/* Products of tiles first to last - 1 -> their pixels, plus the bias (maps,). */
ALWAYS void given(int pairs, const Convolution *c, const float *products, const float *bias, float *pictures,
                  int64_t first, int64_t last) {
    const Grid *g = &c->out;
    const int side = 2 * pairs + 2;
    const int64_t each = vectors(g->maps), step = depth(g) * rows(c->tiles) * LANES;
    V in[SIDE * SIDE], found[SIDE * SIDE];
    for (int64_t tile = first; tile < last; tile++) {
        const Place p = place(c, g, pictures, tile);
        for (int64_t v = 0; v < depth(g); v++) {
            const int64_t phase = v / each, map = v % each * LANES;
            const V more = bias ? some(bias + map, g->maps - map) : (V){0};
            const float *value = products + (v * rows(c->tiles) + tile - first) * LANES;
            for (int k = 0; k < side * side; k++) in[SIDE * (k / side) + k % side] = at(value + k * step);
            both_ways(sums, pairs, TILE, 0, in, found, side, TILE);
            for (int i = 0; i < TILE; i++)
                for (int j = 0; j < TILE; j++) {
                    const int64_t y = g->stride * (p.top + i) + phase / g->stride;
                    const int64_t x = g->stride * (p.left + j) + phase % g->stride;
                    if (y < g->height && x < g->width)
                        put_some((float *)p.picture + (y * g->width + x) * g->maps + map, found[SIDE * i + j] + more,
                                 g->maps - map);
                }
        }
    }
}

/* Of points, by the kernels' size in each of the stride^2 pictures. */
static inline int pairs(const Convolution *c) {
    const int64_t stride = c->in.stride * c->out.stride;
    return (int)((c->size + stride - 1) / stride + 1) / 2;
}

/* Weights of map k and of LANES other maps at a pixel of a kernel. */
static inline V of_kernel(const Convolution *c, const Grid *g, const float *weight, int64_t k, int64_t v, int i, int j) {
    const int64_t phase = v / vectors(g->maps), map = v % vectors(g->maps) * LANES;
    const int64_t y = g->stride * i + phase / g->stride, x = g->stride * j + phase % g->stride;
    const float *from = weight + ((k * c->size + y) * c->size + x) * g->maps + map;
    return y < c->size && x < c->size ? some(from, g->maps - map) : (V){0};
}

/* Kernels of vectors first to last - 1 of the maps (out, or in where turned) of (K, size, size, C) ->
   [product][vector of maps][map of the other side][lane]. */
ALWAYS void kernels(int pairs, const Convolution *c, const float *weight, float *out, int64_t first, int64_t last) {
    const Grid *g = c->turned ? &c->out : &c->in;
    const int side = 2 * pairs + 2, n = side - TILE + 1;
    const int64_t column = depth(&c->in) * LANES * LANES, step = depth(&c->out) * column;
    const int64_t n_maps = depth(&c->in) * LANES;
    float block[SIDE * SIDE][LANES][LANES]; /* not turned: of LANES maps in, as many maps out */
    V in[SIDE * SIDE], found[SIDE * SIDE];
    for (int64_t v = first; v < last; v++)
        for (int64_t map = 0; map < n_maps; map++) {
            for (int64_t lane = 0; !c->turned && map % LANES == 0 && lane < LANES; lane++)
                for (int p = 0; p < n * n; p++) {
                    const int64_t k = v * LANES + lane;
                    const V read = k < c->out.maps ? of_kernel(c, g, weight, k, map / LANES, p / n, p % n) : (V){0};
                    for (int i = 0; i < LANES; i++) block[p][i][lane] = read[i];
                }
            for (int p = 0; p < n * n; p++)
                in[SIDE * (p / n) + p % n] = !c->turned             ? at(block[p][map % LANES])
                                             : map >= c->in.maps ? (V){0}
                                                                 : of_kernel(c, g, weight, map, v, n - 1 - p / n, n - 1 - p % n);
            both_ways(values, pairs, n, 1, in, found, n, side);
            for (int p = 0; p < side * side; p++)
                put(out + p * step + v * column + map * LANES, found[SIDE * (p / side) + p % side]);
        }
}

void winograd_kernels(const Convolution *c, const float *weight, float *out, int64_t first, int64_t last) {
    if (pairs(c) == 2)
        kernels(2, c, weight, out, first, last);
    else
        kernels(3, c, weight, out, first, last);
}

/* The sums of `winograd_weights` -> gradients of kernels first to last - 1 of (K, size, size, C). */
ALWAYS void gradients(int pairs, const Convolution *c, const float *sum, float *out, int64_t first, int64_t last) {
    const Grid *g = &c->in;
    const int side = 2 * pairs + 2, n = side - TILE + 1;
    const int64_t column = depth(&c->out) * LANES * LANES, step = depth(g) * column;
    V in[SIDE * SIDE], found[SIDE * SIDE];
    for (int64_t k = first; k < last; k++)
        for (int64_t v = 0; v < depth(g); v++) {
            const int64_t phase = v / vectors(g->maps), map = v % vectors(g->maps) * LANES;
            for (int p = 0; p < side * side; p++)
                in[SIDE * (p / side) + p % side] = at(sum + p * step + v * column + k * LANES);
            both_ways(sums, pairs, n, 1, in, found, side, n);
            for (int i = 0; i < n; i++)
                for (int j = 0; j < n; j++) {
                    const int64_t y = g->stride * i + phase / g->stride, x = g->stride * j + phase % g->stride;
                    float *to = out + ((k * c->size + y) * c->size + x) * g->maps + map;
                    if (y < c->size && x < c->size) put_some(to, found[SIDE * i + j], g->maps - map);
                }
        }
}

void winograd_gradients(const Convolution *c, const float *sum, float *out, int64_t first, int64_t last) {
    if (pairs(c) == 2)
        gradients(2, c, sum, out, first, last);
    else
        gradients(3, c, sum, out, first, last);
}

/* How many floats kernels and sums (0) and the work of `winograd_forward` and `winograd_weights` take (1), and vectors the
   maps of the results (2). */
int64_t winograd_count(const Convolution *c, int64_t of) {
    const int64_t n = (2 * pairs(c) + 2) * (2 * pairs(c) + 2) * LANES;
    if (of == 0) return n * depth(&c->in) * depth(&c->out) * LANES;
    return of == 1 ? n * rows(c->tiles) * (depth(&c->in) + depth(&c->out)) : depth(&c->out);
}

/* Tiles first to last - 1 of the results: y = kernels * x + bias (or NULL). */
ALWAYS void forward(int pairs, const Convolution *c, const float *x, const float *kernel, const float *bias, float *y,
                    float *work, int64_t first, int64_t last) {
    const int side = 2 * pairs + 2;
    const int64_t in = depth(&c->in), out = depth(&c->out), matrix = rows(c->tiles) * LANES;
    const Right right = {LANES, in * LANES * LANES};
    const Out to = {LANES, matrix};
    float *products = work + side * side * in * matrix;
    for (int64_t tile = first; tile < last; tile += c->tiles) {
        const int64_t end = tile + c->tiles < last ? tile + c->tiles : last;
        taken(points, pairs, side, c, &c->in, x, work, tile, end, 0, in);
        for (int p = 0; p < side * side; p++)
            for (int64_t v = 0; v < in; v += AT_ONCE) {
                const Left left = {LANES, LANES, 1, in - v < AT_ONCE ? in - v : AT_ONCE, matrix};
                multiply(left, work + (p * in + v) * matrix, end - tile, right,
                         kernel + (p * in * out + v) * LANES * LANES, out, to, products + p * out * matrix, v > 0);
            }
        given(pairs, c, products, bias, y, tile, end);
    }
}

void winograd_forward(const Convolution *c, const float *x, const float *kernel, const float *bias, float *y,
                      float *work, int64_t first, int64_t last) {
    if (pairs(c) == 2)
        forward(2, c, x, kernel, bias, y, work, first, last);
    else
        forward(3, c, x, kernel, bias, y, work, first, last);
}

/* Of vectors v_first to v_last - 1 of the results' maps: the sums over tiles first to last - 1 of the products of their gradients' values
   and the pictures' points. */
ALWAYS void weights(int pairs, const Convolution *c, const float *x, const float *g, float *sum, float *work,
                    int64_t first, int64_t last, int64_t v_first, int64_t v_last) {
    const int side = 2 * pairs + 2;
    const int64_t in = depth(&c->in), out = v_last - v_first, matrix = rows(c->tiles) * LANES;
    const int64_t column = depth(&c->out) * LANES * LANES;
    float *slopes = work + side * side * in * matrix;
    for (int64_t tile = first; tile < last; tile += c->tiles) {
        const int64_t end = tile + c->tiles < last ? tile + c->tiles : last;
        const Left left = {1, end - tile, LANES, 1, 0};
        const Right right = {LANES, matrix};
        const Out to = {LANES, column};
        taken(points, pairs, side, c, &c->in, x, work, tile, end, 0, in);
        taken(values, pairs, TILE, c, &c->out, g, slopes, tile, end, v_first, v_last);
        for (int p = 0; p < side * side; p++)
            for (int64_t v = 0; v < out; v++)
                multiply(left, slopes + (p * out + v) * matrix, LANES, right, work + p * in * matrix, in, to,
                         sum + p * in * column + (v_first + v) * LANES * LANES, tile > first);
    }
}

void winograd_weights(const Convolution *c, const float *x, const float *g, float *sum, float *work, int64_t first,
                      int64_t last, int64_t v_first, int64_t v_last) {
    if (pairs(c) == 2)
        weights(2, c, x, g, sum, work, first, last, v_first, v_last);
    else
        weights(3, c, x, g, sum, work, first, last, v_first, v_last);
}
