/* ReLU, response normalisation and max-pooling in one pass over channels-last pictures, forward and backward.

   With S_i = k + alpha * (sum of x_j^2 over the maps j of i's group with |i - j| <= half), y_i = x_i S_i^-beta, and the
   gradient g of y:  dx_i = g_i S_i^-beta - 2 alpha beta x_i * (sum of g_j y_j / S_j over the same j).

   A picture is worked through row by row: a row is normalised in fp32, a few pixels at a time so that they stay in the
   nearest cache, rounded to the pictures' type as the plain form would be, and pooled. What backward needs besides x is
   where each window has its largest value, a byte each: of equal ones the first in reading order, as in torch. NaN stays
   NaN. Where `half` is negative there is no norm. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "vectors.h"

#if LANES == 16
#define FIRST_LANES ((VI){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#elif LANES == 8
#define FIRST_LANES ((VI){0, 1, 2, 3, 4, 5, 6, 7})
#else
#define FIRST_LANES ((VI){0, 1, 2, 3})
#endif
#define TILE 1024 /* elements that are worked through together: some arrays of so many floats fit the nearest cache */
#define NOWHERE 255 /* no value of the window gets the gradient */
#define LARGEST 3e38f /* of an infinite sum Newton's step would make 0 * inf */

typedef int32_t VI __attribute__((vector_size(4 * LANES)));
typedef uint16_t VH __attribute__((vector_size(2 * LANES)));
typedef uint32_t VU __attribute__((vector_size(4 * LANES)));
typedef uint8_t VB __attribute__((vector_size(LANES)));

typedef struct {
    int64_t height, width, maps, out_height, out_width, size, stride, groups, half;
    int32_t bf16, relu_before, relu_after;
    float k, alpha, beta;
    int32_t whole; /* whether groups of maps are whole vectors */
} Shape;

static inline V pick(VI condition, V a, V b) { return (V)((condition & (VI)a) | (~condition & (VI)b)); }
static inline V widened(VH u) {
#ifdef __AVX512F__ /* what the compiler makes of the other line is slow */
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)u), 16);
#else
    return (V)(__builtin_convertvector(u, VU) << 16);
#endif
}

static inline V nearest(V f) { /* the nearest bfloat16, ties to even, as a float */
    const VU bits = (VU)f, up = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
    return pick(f != f, (V)((VU)f | 0x7fc00000u), (V)up);
}

static inline VH rounded(V f) {
    const VU bits = (VU)nearest(f) >> 16;
#ifdef __AVX512F__
    return (VH)_mm512_cvtepi32_epi16((__m512i)bits);
#else
    return __builtin_convertvector(bits, VH);
#endif
}

static inline VB as_bytes(VI v) {
#ifdef __AVX512F__
    return (VB)_mm512_cvtepi32_epi8((__m512i)v);
#else
    return __builtin_convertvector(v, VB);
#endif
}

static inline VI from_bytes(VB v) {
#ifdef __AVX512F__
    return (VI)_mm512_cvtepu8_epi32((__m128i)v);
#else
    return __builtin_convertvector(v, VI);
#endif
}

#define INLINE static inline __attribute__((always_inline)) /* so that what is known of a shape is known inside */

/* n <= LANES elements of a tensor from `first` on; the other lanes are 0 */
INLINE V get(const Shape p, const void *pictures, int64_t first, int64_t n) {
    if (p.bf16) {
        VH u = {0};
        if (n == LANES) memcpy(&u, (const uint16_t *)pictures + first, sizeof u);
        else memcpy(&u, (const uint16_t *)pictures + first, 2 * n);
        return widened(u);
    }
    V v = {0};
    if (n == LANES) memcpy(&v, (const float *)pictures + first, sizeof v);
    else memcpy(&v, (const float *)pictures + first, 4 * n);
    return v;
}

INLINE void set(const Shape p, void *pictures, int64_t first, V v, int64_t n) {
    if (p.bf16) {
        const VH u = rounded(v);
        if (n == LANES) memcpy((uint16_t *)pictures + first, &u, sizeof u);
        else memcpy((uint16_t *)pictures + first, &u, 2 * n);
    } else {
        if (n == LANES) memcpy((float *)pictures + first, &v, sizeof v);
        else memcpy((float *)pictures + first, &v, 4 * n);
    }
}

INLINE V input(const Shape p, const void *pictures, int64_t first, int64_t n) {
    const V x = get(p, pictures, first, n);
    return p.relu_before ? pick(x < 0, (V){0}, x) : x;
}

/* 1 / sqrt(s) for s > 0, to the last bit or two: an estimate and Newton's steps; a square root and a division take
   several times as long */
static inline V inverse_root(V s) {
#ifdef __AVX512F__
    V r = (V)_mm512_rsqrt14_ps((__m512)s);
#else
    V r = (V)(0x5f375a86 - ((VI)s >> 1)); /* the logarithm, as a float holds it, times -1/2 */
    r *= 1.5f - 0.5f * s * r * r;
    r *= 1.5f - 0.5f * s * r * r;
#endif
    return r * (1.5f - 0.5f * s * r * r);
}

/* What is kept of a tile: some pixels' groups of maps, each with room for whole vectors and `margin` floats on both sides,
   which are 0 wherever there is no map. Read as soon as written a window would have to be waited for. */
typedef struct {
    int64_t maps, margin, pitch, groups; /* of a group; floats from one to the next; groups of a tile */
    float *squares, *slopes, *factor;
} Tile;

static int new_tile(const Shape *p, Tile *t) {
    t->maps = p->maps / p->groups;
    t->margin = p->half < 0 ? 0 : (p->half + LANES - 1) / LANES * LANES;
    t->pitch = (t->maps + LANES - 1) / LANES * LANES + 2 * t->margin;
    t->groups = t->maps < TILE ? TILE / t->maps : 1;
    const size_t n = (size_t)(t->groups * t->pitch);
    t->squares = calloc(3 * n, sizeof(float));
    if (!t->squares) return 0;
    t->slopes = t->squares + n;
    t->factor = t->slopes + n;
    return 1;
}

INLINE V window_sum(const float *v, int64_t half) {
    if (half == 2) return at(v - 2) + at(v - 1) + at(v) + at(v + 1) + at(v + 2);
    V sum = at(v);
    for (int64_t j = 1; j <= half; j++) sum += at(v - j) + at(v + j);
    return sum;
}

/* For the vectors of the groups of a tile: `i`, its first map; `n`, its maps; `here`, its place in the tile's arrays;
   `element`, its place in the row. */
#define FOR_VECTORS(body)                                                              \
    for (int64_t group = 0; group < groups; group++)                                   \
        for (int64_t i = 0; i < t.maps; i += LANES) {                                 \
            const int64_t n = p.whole || t.maps - i >= LANES ? LANES : t.maps - i;              \
            const int64_t here = group * t.pitch + t.margin + i;                     \
            const int64_t element = group * t.maps + i;                               \
            (void)here;                                                                \
            body                                                                       \
        }

INLINE void squares(const Shape p, const void *pictures, int64_t first, int64_t groups, const Tile t) {
    FOR_VECTORS({
        const V x = input(p, pictures, first + element, n);
        put(t.squares + here, x * x);
    })
}

/* S^-beta, and 1 / S in `inverse` */
INLINE V factor_of(const Shape p, const float *squares, V *inverse) {
    V s = p.k + p.alpha * window_sum(squares, p.half);
    if (p.beta == 0.75f) { /* by roots of roots */
        const V root = inverse_root(s), result = root * root * inverse_root(root);
        *inverse = root * root;
        return pick(s > LARGEST, (V){0}, result);
    }
    V result;
    for (int j = 0; j < LANES; j++) result[j] = powf(s[j], -p.beta);
    *inverse = 1 / s;
    return result;
}

/* One row of pixels, normalised and rounded; `y` has room for a vector behind it. */
INLINE void normalise_as(const Shape p, const void *pictures, int64_t first, float *restrict y, const Tile t) {
    const int64_t all_groups = p.width * p.groups;
    for (int64_t done = 0; done < all_groups; done += t.groups) {
        const int64_t groups = done + t.groups < all_groups ? t.groups : all_groups - done;
        const int64_t place = done * t.maps;
        if (p.half < 0) {
            FOR_VECTORS({ put(y + place + element, input(p, pictures, first + place + element, n)); })
            continue;
        }
        squares(p, pictures, first + place, groups, t);
        FOR_VECTORS({
            V inverse;
            const V v = input(p, pictures, first + place + element, n) * factor_of(p, t.squares + here, &inverse);
            put(y + place + element, p.bf16 ? nearest(v) : v); /* what is too much the next vector writes over */
        })
    }
}

/* Calls a function with what the papers' shapes have in common as constants, or as it comes. */
#define WITH(half_, relu, bf16_, p, t, function, ...)                                                       \
    if (q.half == (half_) && !q.relu_before == !(relu) && !q.bf16 == !(bf16_)) {                            \
        q.half = (half_), q.relu_before = (relu), q.bf16 = (bf16_);                                         \
        function(q, __VA_ARGS__, *t);                                                                       \
        return;                                                                                             \
    }
#define AS_IT_IS(p, t, function, ...)                                                                       \
    Shape q = *p;                                                                                           \
    q.whole = 0;                                                                                            \
    if (t->maps % LANES == 0 && (q.half == -1 || q.beta == 0.75f)) {                                        \
        q.beta = 0.75f, q.whole = 1;                                                                        \
        WITH(2, 1, 1, p, t, function, __VA_ARGS__)                                                          \
        WITH(2, 0, 1, p, t, function, __VA_ARGS__)                                                          \
        WITH(-1, 1, 1, p, t, function, __VA_ARGS__)                                                         \
        WITH(-1, 0, 1, p, t, function, __VA_ARGS__)                                                         \
        WITH(2, 1, 0, p, t, function, __VA_ARGS__)                                                          \
        WITH(2, 0, 0, p, t, function, __VA_ARGS__)                                                          \
        WITH(-1, 1, 0, p, t, function, __VA_ARGS__)                                                         \
        WITH(-1, 0, 0, p, t, function, __VA_ARGS__)                                                         \
        q = *p, q.whole = 0;                                                                                \
    }                                                                                                       \
    function(q, __VA_ARGS__, *t);

static void normalise_row(const Shape *p, const void *pictures, int64_t first, float *y, const Tile *t) {
    AS_IT_IS(p, t, normalise_as, pictures, first, y)
}

static void *scratch(int64_t floats) { return calloc((size_t)floats + LANES, sizeof(float)); }

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void load(const Shape *p, float *out, const void *pictures, int64_t first, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) put(out + i, get(*p, pictures, first + i, least(n - i, LANES)));
}

static void store(const Shape *p, void *pictures, int64_t first, const float *in, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) set(*p, pictures, first + i, at(in + i), least(n - i, LANES));
}

/* Floats from one row of y to the next: a row's last vector may reach beyond it. */
static inline int64_t pitch_of(const Shape *p) { return p->width * p->maps + LANES; }

/* A window's rows and columns: it may reach beyond the right and bottom edges. */
typedef struct {
    int64_t top, bottom, left, right;
} Window;

static inline Window window_at(const Shape *p, int64_t oh, int64_t ow) {
    const int64_t top = oh * p->stride, left = ow * p->stride;
    return (Window){top, least(top + p->size, p->height), left, least(left + p->size, p->width)};
}

/* Of the rows of y that windows `oh` need (row r lies at r modulo size) the largest of each window: (W', C); and, unless
   `where` is missing, its place in the window. After the ReLU, if one follows. */
static void pool_row(const Shape *p, const float *y, int64_t oh, float *pooled, uint8_t *where) {
    const int64_t pitch = pitch_of(p), maps = p->maps;
    for (int64_t ow = 0; ow < p->out_width; ow++) {
        const Window window = window_at(p, oh, ow);
        for (int64_t i = 0; i < maps; i += LANES) {
            V best = at(y + (window.top % p->size) * pitch + window.left * maps + i);
            VI place = {0};
            int32_t k = 0;
            for (int64_t h = window.top; h < window.bottom; h++) {
                const float *line = y + (h % p->size) * pitch + i;
                for (int64_t w = window.left; w < window.right; w++, k++) {
                    const V v = at(line + w * maps);
                    const VI better = (v > best) | (v != v);
                    best = pick(better, v, best);
                    place = (better & (place * 0 + k)) | (~better & place);
                }
            }
            if (p->relu_after) {
                const VI none = best <= 0;
                place |= none & (place * 0 + NOWHERE);
                best = pick(none, (V){0}, best);
            }
            put(pooled + ow * maps + i, best); /* what is too much the next pixel writes over */
            if (where) {
                const VB bytes = as_bytes(place);
                memcpy(where + ow * maps + i, &bytes, (size_t)least(LANES, maps - i));
            }
        }
    }
}

/* pictures (n, H, W, C) -> out (n, H', W', C) and where, uint8 (n, H', W', C), unless it is missing. 0, or 1 when there is
   no memory. */
int forward(const Shape *p, const void *pictures, void *out, uint8_t *where, int64_t n_pictures) {
    const int64_t row = p->width * p->maps, pitch = pitch_of(p), out_row = p->out_width * p->maps;
    float *y = scratch(p->size * pitch), *pooled = scratch(out_row);
    Tile tile = {0};
    if (!y || !pooled || !new_tile(p, &tile)) {
        free(y), free(pooled), free(tile.squares);
        return 1;
    }
    for (int64_t n = 0; n < n_pictures; n++) {
        int64_t done = 0; /* rows normalised */
        for (int64_t oh = 0; oh < p->out_height; oh++) {
            const Window window = window_at(p, oh, 0);
            for (done = done > window.top ? done : window.top; done < window.bottom; done++)
                normalise_row(p, pictures, (n * p->height + done) * row, y + (done % p->size) * pitch, &tile);
            const int64_t place = (n * p->out_height + oh) * out_row;
            pool_row(p, y, oh, pooled, where ? where + place : 0);
            store(p, out, place, pooled, out_row);
        }
    }
    free(y), free(pooled), free(tile.squares);
    return 0;
}

/* The gradient dy of a finished row becomes that of x and is written. */
INLINE void finish_as(const Shape p, const void *pictures, void *dx, int64_t first, const float *restrict dy, const Tile t) {
    const int64_t all_groups = p.width * p.groups;
    const float twice = 2 * p.alpha * p.beta;
    for (int64_t done = 0; done < all_groups; done += t.groups) {
        const int64_t groups = done + t.groups < all_groups ? t.groups : all_groups - done;
        const int64_t place = done * t.maps;
        if (p.half < 0) {
            FOR_VECTORS({
                const V x = input(p, pictures, first + place + element, n);
                const V d = at(dy + place + element);
                set(p, dx, first + place + element, p.relu_before ? pick(x <= 0, (V){0}, d) : d, n);
            })
            continue;
        }
        squares(p, pictures, first + place, groups, t);
        FOR_VECTORS({
            V inverse;
            const V factor = factor_of(p, t.squares + here, &inverse);
            const V x = input(p, pictures, first + place + element, n);
            put(t.factor + here, factor);
            put(t.slopes + here, x * at(dy + place + element) * factor * inverse); /* x is 0 beyond the group */
        })
        FOR_VECTORS({
            const V x = input(p, pictures, first + place + element, n);
            V d = at(dy + place + element) * at(t.factor + here) - twice * x * window_sum(t.slopes + here, p.half);
            if (p.relu_before) d = pick(x <= 0, (V){0}, d);
            set(p, dx, first + place + element, d, n);
        })
    }
}

static void finish_row(const Shape *p, const void *pictures, void *dx, int64_t first, const float *dy, const Tile *t) {
    AS_IT_IS(p, t, finish_as, pictures, dx, first, dy)
}

/* The gradients g (W', C) of a row of windows, each added where its window had its largest value; row r of dy lies at r
   modulo size. */
static void give(const Shape *p, const float *g, const uint8_t *where, int64_t oh, float *dy) {
    const int64_t maps = p->maps, row = p->width * maps;
    for (int64_t ow = 0; ow < p->out_width; ow++) {
        const Window window = window_at(p, oh, ow);
        for (int64_t i = 0; i < maps; i += LANES) {
            VB bytes = {0};
            memcpy(&bytes, where + ow * maps + i, (size_t)least(LANES, maps - i));
            const VI place = from_bytes(bytes), inside = FIRST_LANES < (int32_t)(maps - i);
            const V slope = pick(inside, at(g + ow * maps + i), (V){0});
            int32_t k = 0;
            for (int64_t h = window.top; h < window.bottom; h++) {
                float *line = dy + (h % p->size) * row + i;
                for (int64_t w = window.left; w < window.right; w++, k++)
                    put(line + w * maps, at(line + w * maps) + pick(place == k, slope, (V){0}));
            }
        }
    }
}

/* pictures, where their windows have the largest value, and the gradient g (n, H', W', C) of the result -> dx (n, H, W, C).
   0, or 1 when there is no memory. */
int backward(const Shape *p, const void *pictures, const uint8_t *where, const void *g, void *dx, int64_t n_pictures) {
    const int64_t row = p->width * p->maps, out_row = p->out_width * p->maps, ring = p->size;
    float *dy = scratch(ring * row), *gs = scratch(out_row);
    Tile tile = {0};
    if (!dy || !gs || !new_tile(p, &tile)) {
        free(dy), free(gs), free(tile.squares);
        return 1;
    }
    for (int64_t n = 0; n < n_pictures; n++) {
        int64_t begun = 0, finished = 0; /* rows; row r lies at r modulo size */
        for (int64_t oh = 0; oh <= p->out_height; oh++) {
            const int last = oh == p->out_height;
            const int64_t top = last ? p->height : least(oh * p->stride, p->height);
            const int64_t bottom = last ? p->height : least(top + p->size, p->height);
            for (; finished < top; finished++) { /* no later window reaches them */
                float *d = dy + (finished % ring) * row;
                if (finished >= begun) { /* between windows, or behind the last one */
                    memset(d, 0, sizeof(float) * row);
                    begun = finished + 1;
                }
                finish_row(p, pictures, dx, (n * p->height + finished) * row, d, &tile);
            }
            if (last) break;
            for (; begun < bottom; begun++) memset(dy + (begun % ring) * row, 0, sizeof(float) * row);
            const int64_t place = (n * p->out_height + oh) * out_row;
            load(p, gs, g, place, out_row);
            give(p, gs, where + place, oh, dy);
        }
    }
    free(dy), free(gs), free(tile.squares);
    return 0;
}
