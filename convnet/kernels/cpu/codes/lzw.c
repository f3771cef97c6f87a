/* The codes of LZW data are walked and the symbols counted that they stand for, as lzw.py does, the plain form. */
#include <stdint.h>

enum { LARGEST = 12 };

/* The number of symbols, or -1 for a code that isn't defined; counting stops above `most`. ended: by an end code. */
int64_t lzw_symbols(const uint8_t *data, int64_t n_bytes, int bits, int high_first, int64_t most, int *ended) {
    int32_t lengths[1 << LARGEST];
    int clear = 1 << bits, n = clear + 2, width = bits + 1;
    int64_t done = 0, before = 0, place = 0;
    *ended = 0;
    for (int i = 0; i < clear; i++) lengths[i] = 1;
    while (place + width <= 8 * n_bytes) {
        uint32_t word = 0;
        for (int i = 0; i < 3; i++) {
            uint32_t byte = (place >> 3) + i < n_bytes ? data[(place >> 3) + i] : 0;
            word |= byte << (high_first ? 16 - 8 * i : 8 * i);
        }
        int code = (high_first ? word >> (24 - (place & 7) - width) : word >> (place & 7)) & ((1 << width) - 1);
        place += width;
        if (code == clear) {
            n = clear + 2, width = bits + 1, before = 0;
            continue;
        }
        if (code == clear + 1) return *ended = 1, done;
        if (code > n - !before || (code == n && n >= 1 << LARGEST)) return -1;
        if (before && n < 1 << LARGEST) lengths[n++] = (int32_t)(before + 1);
        before = lengths[code];
        done += before;
        if (done > most) return done;
        while (width < LARGEST && n + high_first >= 1 << width) width++;
    }
    return done;
}
