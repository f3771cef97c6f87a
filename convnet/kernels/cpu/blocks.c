/* Pictures as blocks of pixels: (n, height, width, pixel bytes) -> (n, rows, columns, stride, stride, pixel bytes), zeros where
   a picture has no pixels. */

#include <stdint.h>
#include <string.h>

static inline __attribute__((always_inline)) void spread(const char *restrict line, char *restrict out, int64_t whole,
                                                         int64_t piece, int64_t block) {
    for (int64_t c = 0; c < whole; c++) memcpy(out + c * block, line + c * piece, (size_t)piece);
}

void blocks(const char *restrict pictures, char *restrict out, int64_t n, int64_t height, int64_t width, int64_t rows,
            int64_t columns, int64_t stride, int64_t pixel) {
    const int64_t piece = stride * pixel, block = stride * piece;
    const int64_t whole = width / stride < columns ? width / stride : columns;
    const int64_t rest = whole < columns ? (width - whole * stride) * pixel : 0; /* bytes of a block that ends too early */
    for (int64_t picture = 0; picture < n; picture++)
        for (int64_t r = 0; r < rows; r++) {
            char *first = out + (picture * rows + r) * columns * block;
            for (int64_t dy = 0; dy < stride; dy++) {
                const int64_t y = r * stride + dy;
                const char *line = pictures + (picture * height + y) * width * pixel;
                char *row = first + dy * piece;
                if (y >= height) {
                    for (int64_t c = 0; c < columns; c++) memset(row + c * block, 0, (size_t)piece);
                    continue;
                }
                if (piece == 24) spread(line, row, whole, 24, block); /* 4 pixels of 3 numbers of 2 bytes */
                else spread(line, row, whole, piece, block);
                for (int64_t c = whole; c < columns; c++) {
                    const int64_t bytes = c == whole ? rest : 0;
                    memcpy(row + c * block, line + whole * piece, (size_t)bytes);
                    memset(row + c * block + bytes, 0, (size_t)(piece - bytes));
                }
            }
        }
}
