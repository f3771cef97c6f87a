/* Locally connected layers: for each place of the results a product of its own, of all pictures and the place's weights.

   float32: x (n, height, width, maps_in), weights (places, size, size, maps_in, maps_out), results and their gradients
   (n, places, maps_out). The pixels of a row of a window lie together, so that nothing is copied; what is beyond the
   edges is left out. For the pictures' gradient pictures are lanes: results' gradients (places, maps_out, lanes),
   pictures' (height, width, maps_in, lanes). */

#include "products.h"

#define WHOLE 16 /* pictures that a thread takes at least */

typedef struct {
    int64_t n, side, maps_in, maps_out, size, padding, out_side; /* sides: of pictures and results; size: of a window */
    int64_t lanes;                                               /* of n pictures, a multiple of WHOLE */
} Local;

/* A row of the window of a place that is within the picture: its first pixel, its first weight's place in the window,
   and how many. */
typedef struct {
    int64_t pixel, weight, n;
} Run;

static inline Run run_of(const Local *l, int64_t place, int64_t i) {
    const int64_t y = place / l->out_side - l->padding + i, left = place % l->out_side - l->padding;
    const int64_t begin = left < 0 ? 0 : left, end = left + l->size < l->side ? left + l->size : l->side;
    const int inside = y >= 0 && y < l->side && begin < end;
    return (Run){y * l->side + begin, i * l->size + begin - left, inside ? end - begin : 0};
}

/* Adds to y, which holds the biases, for pictures first to last - 1. */
void local_forward(const Local *l, const float *x, const float *weights, float *y, int64_t first, int64_t last) {
    const int64_t places = l->out_side * l->out_side, picture = l->side * l->side * l->maps_in;
    for (int64_t place = 0; place < places; place++)
        for (int64_t i = 0; i < l->size; i++) {
            const Run run = run_of(l, place, i);
            if (!run.n) continue;
            const Left left = {picture, run.n * l->maps_in, 1, 1, 0};
            const int64_t own = (place * l->size * l->size + run.weight) * l->maps_in * l->maps_out;
            multiply(left, x + first * picture + run.pixel * l->maps_in, last - first, (Right){l->maps_out, LANES},
                     weights + own, l->maps_out / LANES, (Out){places * l->maps_out, LANES},
                     y + (first * places + place) * l->maps_out, 1);
        }
}

/* The gradients of the weights of places first to last - 1; those of what is beyond the edges stay as they are. */
void local_weights(const Local *l, const float *x, const float *g, float *weights, int64_t first, int64_t last) {
    const int64_t places = l->out_side * l->out_side, picture = l->side * l->side * l->maps_in;
    for (int64_t place = first; place < last; place++)
        for (int64_t i = 0; i < l->size; i++) {
            const Run run = run_of(l, place, i);
            if (!run.n) continue;
            const Left left = {1, l->n, picture, 1, 0};
            const int64_t own = (place * l->size * l->size + run.weight) * l->maps_in * l->maps_out;
            multiply(left, x + run.pixel * l->maps_in, run.n * l->maps_in, (Right){places * l->maps_out, LANES},
                     g + place * l->maps_out, l->maps_out / LANES, (Out){l->maps_out, LANES}, weights + own, 0);
        }
}

/* Adds to the gradient dx of the pictures, of the first * WHOLE-th to before the last * WHOLE-th. */
void local_pictures(const Local *l, const float *g, const float *weights, float *dx, int64_t first, int64_t last) {
    const int64_t places = l->out_side * l->out_side;
    for (int64_t place = 0; place < places; place++)
        for (int64_t i = 0; i < l->size; i++) {
            const Run run = run_of(l, place, i);
            if (!run.n) continue;
            const Left left = {l->maps_out, l->maps_out, 1, 1, 0};
            const int64_t own = (place * l->size * l->size + run.weight) * l->maps_in * l->maps_out;
            multiply(left, weights + own, run.n * l->maps_in, (Right){l->lanes, LANES},
                     g + place * l->maps_out * l->lanes + first * WHOLE, (last - first) * (WHOLE / LANES),
                     (Out){l->lanes, LANES}, dx + run.pixel * l->maps_in * l->lanes + first * WHOLE, 1);
        }
}
