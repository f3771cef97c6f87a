/* The transforms of Winograd's F(4x4, 3x3): tiles of 4 x 4 pixels of a 3 x 3 convolution at stride 1 from 36 products.
   Of a larger kernel's pieces of 3 x 3 each has its values beside the others': `step` is then that of all together.

   With the points 0, +-a, +-b and infinity, for a row of six pixels d, four results y and four gradients g:
   points(d) = B^T d, results(m) = A^T m and spread(g) = A g, applied to the columns of a tile and then to its rows.
   The points +-3/4 and +-3/2 have half the rounding error of the usual +-1 and +-2. All constants are exact in floats.

   Pictures are float32, channels-last, of 16 maps or more; a tile's 36 values lie together, (tiles, 36, maps). The last
   vector of maps may hold some of the one before. */

#include <stdint.h>

#include "vectors.h"

#define A 0.75f
#define B 1.5f
#define TILE 4
#define SIDE 6 /* pixels that a row of a tile reads */

typedef struct {
    int64_t height, width, maps, down, across; /* of the pictures; tiles */
    int64_t above, before;                     /* the tiles' first pixel: zeros above and left of the picture */
    int64_t step;                              /* floats from one of a tile's 36 values to the next */
} Grid;

static inline void points(const V *d, V *out, int64_t step) { /* `step` vectors from one to the next */
    const V d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const V even_a = d4 - B * B * d2, odd_a = A * (d3 - B * B * d1);
    const V even_b = d4 - A * A * d2, odd_b = B * (d3 - A * A * d1);
    out[0] = A * A * B * B * d0 - (A * A + B * B) * d2 + d4;
    out[step] = even_a + odd_a;
    out[2 * step] = even_a - odd_a;
    out[3 * step] = even_b + odd_b;
    out[4 * step] = even_b - odd_b;
    out[5 * step] = A * A * B * B * d1 - (A * A + B * B) * d3 + d5;
}

static inline void results(const V *m, V *out, int64_t step) {
    const V sum_a = m[step] + m[2 * step], less_a = A * (m[step] - m[2 * step]);
    const V sum_b = m[3 * step] + m[4 * step], less_b = B * (m[3 * step] - m[4 * step]);
    out[0] = m[0] + sum_a + sum_b;
    out[step] = less_a + less_b;
    out[2 * step] = A * A * sum_a + B * B * sum_b;
    out[3 * step] = A * A * less_a + B * B * less_b + m[5 * step];
}

static inline void spread(const V *g, V *out, int64_t step) {
    const V g0 = g[0], g1 = g[step], g2 = g[2 * step], g3 = g[3 * step];
    const V even_a = g0 + A * A * g2, odd_a = A * (g1 + A * A * g3);
    const V even_b = g0 + B * B * g2, odd_b = B * (g1 + B * B * g3);
    out[0] = g0;
    out[step] = even_a + odd_a;
    out[2 * step] = even_a - odd_a;
    out[3 * step] = even_b + odd_b;
    out[4 * step] = even_b - odd_b;
    out[5 * step] = g3;
}

typedef void Rule(const V *, V *, int64_t);

/* `rule` on the columns of a tile (n_in x n_in), then on the rows: (n_out x n_out). */
static inline __attribute__((always_inline)) void both_ways(Rule rule, const V *in, V *out, int n_in, int n_out) {
    V half[SIDE * SIDE];
    for (int j = 0; j < n_in; j++) rule(in + j, half + j, SIDE);
    for (int i = 0; i < n_out; i++) rule(half + SIDE * i, out + SIDE * i, 1);
}

/* Reads squares of `n_in` pixels that begin `above` and `before` (left of) their tiles, 0 beyond the picture's edges. */
static inline __attribute__((always_inline)) void taken_apart(Rule rule, int n_in, const Grid *p, const float *pictures,
                                                               float *out, int64_t first, int64_t last) {
    V in[SIDE * SIDE], values[SIDE * SIDE];
    for (int64_t tile = first; tile < last; tile++, out += SIDE * SIDE * p->step) {
        const int64_t left = TILE * (tile % p->across) - p->before;
        const int64_t top = TILE * (tile / p->across % p->down) - p->above;
        const float *picture = pictures + tile / (p->across * p->down) * p->height * p->width * p->maps;
        for (int64_t next = 0; next < p->maps; next += LANES) {
            const int64_t map = next + LANES <= p->maps ? next : p->maps - LANES;
            for (int i = 0; i < n_in; i++)
                for (int j = 0; j < n_in; j++) {
                    const int64_t y = top + i, x = left + j;
                    const int inside = y >= 0 && y < p->height && x >= 0 && x < p->width;
                    in[SIDE * i + j] = inside ? at(picture + (y * p->width + x) * p->maps + map) : (V){0};
                }
            both_ways(rule, in, values, n_in, SIDE);
            for (int k = 0; k < SIDE * SIDE; k++) put(out + k * p->step + map, values[k]);
        }
    }
}

/* Pictures (n, H, W, C) -> B^T d B of tiles first to last - 1, (tiles, 36, C). */
void winograd_points(const Grid *p, const float *pictures, const float *none, float *out, int64_t first, int64_t last) {
    (void)none;
    taken_apart(points, SIDE, p, pictures, out, first, last);
}

/* Gradients of results (n, H, W, C) -> A g A^T of tiles first to last - 1, (tiles, 36, C). */
void winograd_spread(const Grid *p, const float *gradients, const float *none, float *out, int64_t first, int64_t last) {
    (void)none;
    taken_apart(spread, TILE, p, gradients, out, first, last);
}

/* Products (tiles, 36, C) of tiles first to last - 1 -> their pixels of the results (n, H, W, C), plus the bias (C,). */
void winograd_results(const Grid *p, float *pictures, const float *bias, const float *products, int64_t first,
                      int64_t last) {
    V in[SIDE * SIDE], values[SIDE * SIDE];
    for (int64_t tile = first; tile < last; tile++, products += SIDE * SIDE * p->step) {
        const int64_t left = TILE * (tile % p->across), top = TILE * (tile / p->across % p->down);
        float *picture = pictures + tile / (p->across * p->down) * p->height * p->width * p->maps;
        for (int64_t next = 0; next < p->maps; next += LANES) {
            const int64_t map = next + LANES <= p->maps ? next : p->maps - LANES;
            const V more = bias ? at(bias + map) : (V){0};
            for (int k = 0; k < SIDE * SIDE; k++) in[k] = at(products + k * p->step + map);
            both_ways(results, in, values, SIDE, TILE);
            for (int i = 0; i < TILE && top + i < p->height; i++)
                for (int j = 0; j < TILE && left + j < p->width; j++)
                    put(picture + ((top + i) * p->width + left + j) * p->maps + map, values[SIDE * i + j] + more);
        }
    }
}
