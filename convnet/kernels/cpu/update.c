/* The papers' update rule: v <- momentum v - decay rate w - rate g;  w <- w + v;  copy <- w, rounded to bfloat16. */

#include "bfloat16.h"

#define BLOCK 2048 /* elements: they stay in the cache from the update to the copy */

typedef struct {
    float *w, *v;
    const void *g;
    uint16_t *copy;
    int64_t n; /* elements */
    float momentum, decayed, negative;
} Move;

/* n elements. `copy` and `g` may be missing; a gradient is bfloat16 where there is a copy, else float32.
   decayed: - decay * rate; negative: - rate. */
static void update(float *restrict w, float *restrict v, const void *restrict g, uint16_t *restrict copy, int64_t n,
                   float momentum, float decayed, float negative) {
    const float *restrict wide = g;
    const uint16_t *restrict narrow = g;
    for (int64_t first = 0; first < n; first += BLOCK) {
        const int64_t last = first + BLOCK < n ? first + BLOCK : n;
        if (!g)
            for (int64_t i = first; i < last; i++) w[i] += v[i] = v[i] * momentum + w[i] * decayed;
        else if (!copy)
            for (int64_t i = first; i < last; i++) w[i] += v[i] = v[i] * momentum + w[i] * decayed + wide[i] * negative;
        else
            for (int64_t i = first; i < last; i++)
                w[i] += v[i] = v[i] * momentum + w[i] * decayed + widened(narrow[i]) * negative;
        if (copy)
            for (int64_t i = first; i < last; i++) copy[i] = rounded(w[i]);
    }
}

/* n_moves weights, one after the other */
void updates(const Move *m, int64_t n_moves) {
    for (; n_moves--; m++) update(m->w, m->v, m->g, m->copy, m->n, m->momentum, m->decayed, m->negative);
}
