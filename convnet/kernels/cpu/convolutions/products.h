/* Products of matrices that lie in parts, by sums that stay in registers. */

#include <stdint.h>

#include "../vectors.h"

#define ROWS ((LANES == 4 || LANES == 8) ? 4 : 8) /* whose sums, of WIDE vectors, the registers hold */
#define WIDE 3
#define ALWAYS static inline __attribute__((always_inline))

/* left[row][depth]: floats from a row to the next; `blocks` times n depths, floats from a depth and from a block to the next.
   right[depth][vector] and out[row][vector] likewise. */
typedef struct {
    int64_t of_row, n, of_n, blocks, of_block;
} Left;
typedef struct {
    int64_t of_depth, of_vector;
} Right;
typedef struct {
    int64_t of_row, of_vector;
} Out;

/* out[row][v] = the sum over depths of left[row][depth] * right[depth][v], for so many rows and vectors v; `more`: +=, after
   the sum: sums of sums round less. */
ALWAYS void block(int rows, int wide, const Left l, const float *left, const Right r, const float *right, const Out o,
                  float *out, int more) {
    V sum[ROWS][WIDE];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < wide; v++) sum[i][v] = (V){0};
    for (int64_t k = 0; k < l.blocks; k++, left += l.of_block) {
        const float *own = left;
        for (int64_t d = 0; d < l.n; d++, own += l.of_n, right += r.of_depth) {
            V side[WIDE];
            for (int v = 0; v < wide; v++) side[v] = at(right + v * r.of_vector);
            for (int i = 0; i < rows; i++)
                for (int v = 0; v < wide; v++) sum[i][v] += own[i * l.of_row] * side[v];
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < wide; v++) {
            float *place = out + i * o.of_row + v * o.of_vector;
            put(place, more ? at(place) + sum[i][v] : sum[i][v]);
        }
}

/* All rows from `row` on that come by so many at once, of `wide` vectors; the first row that is left. */
ALWAYS int64_t some_rows(int rows, int wide, const Left l, const float *left, const Right r, const float *right, const Out o,
                         float *out, int more, int64_t row, int64_t n_rows) {
    for (; row + rows <= n_rows; row += rows)
        block(rows, wide, l, left + row * l.of_row, r, right, o, out + row * o.of_row, more);
    return row;
}

static inline void multiply(const Left l, const float *left, int64_t n_rows, const Right r, const float *right,
                            int64_t n_vectors, const Out o, float *out, int more) {
    for (int64_t v = 0, wide; v < n_vectors; v += wide, right += wide * r.of_vector, out += wide * o.of_vector) {
        const int64_t rest = n_vectors - v;
        wide = rest == 4 || rest < 3 ? (rest < 2 ? 1 : 2) : 3;
#define ROWS_OF(wide) \
    some_rows(1, wide, l, left, r, right, o, out, more, \
              some_rows(ROWS, wide, l, left, r, right, o, out, more, 0, n_rows), n_rows)
        if (wide == 3)
            ROWS_OF(3);
        else if (wide == 2)
            ROWS_OF(2);
        else
            ROWS_OF(1);
#undef ROWS_OF
    }
}
