/* Does a baseline JPEG's scan say exactly what its header promises? The Huffman codes are walked from the first block
 * to the last, nothing is transformed. ITU T.81, sections F.2 and C. The plain form is libjpeg's own word (jpeg.py). */
#include <stdint.h>
#include <string.h>

enum { FINE, UNKNOWN, SHORT, BAD_CODE, TOO_MANY, TOO_LARGE, LEFT_OVER, BAD_PADDING, NO_RESTART, HOLE };

#define ALONE __attribute__((noinline)) /* its caller, or itself, has too few registers otherwise */
enum { LOOK = 10 }; /* bits of a code that are looked up at once */
enum { ALIKE = 20 }; /* coefficients in a row that no picture has: what a hole of zeros says */

typedef struct {
    uint32_t short_code[1 << LOOK]; /* by the bits that come: code's and value's bits, code's bits, symbol; 0: longer */
    int32_t last[18];               /* the largest code of each length, -1: none */
    int32_t shift[17];              /* from a code to its place in symbols */
    uint8_t symbols[256];
    int known;
} Huffman;

typedef struct {
    int id, across, down, quant, dc, ac, wide, high, seen;
    int32_t before; /* the last block's DC */
} Component;

typedef struct {
    const uint8_t *place, *end;
    uint64_t bits;       /* those that come, the next one highest; zeros follow them */
    int n_bits, n_false; /* of n_bits, so many lie behind the end of the segment */
} Reader;

static inline uint32_t entry(int length, int symbol) { return symbol << 16 | length << 8 | (length + (symbol & 15)); }

static int define_codes(Huffman *table, const uint8_t *body, int n) {
    int code = 0, place = 0, total = 0;
    for (int i = 0; i < 16; i++) total += body[i];
    if (total > 256 || 16 + total > n) return 0;
    memset(table, 0, sizeof *table);
    memcpy(table->symbols, body + 16, total);
    for (int length = 1; length <= 16; length++) {
        table->shift[length] = place - code;
        for (int i = 0; i < body[length - 1]; i++, code++, place++) {
            if (code >= 1 << length) return 0;
            for (int low = 0; length <= LOOK && low < 1 << (LOOK - length); low++)
                table->short_code[(code << (LOOK - length)) + low] = entry(length, table->symbols[place]);
        }
        table->last[length] = body[length - 1] ? code - 1 : -1;
        code <<= 1;
    }
    table->known = 1;
    return 16 + total;
}

/* At least 32 bits, more than a code and its value need. */
static inline void fill(Reader *reader) {
    if (reader->n_bits >= 32) return;
    if (reader->place + 4 <= reader->end) {
        uint32_t word = (uint32_t)reader->place[0] << 24 | reader->place[1] << 16 | reader->place[2] << 8 | reader->place[3];
        if (!((~word - 0x01010101u) & word & 0x80808080u)) { /* none of the four is 0xFF */
            reader->bits |= (uint64_t)word << (32 - reader->n_bits);
            reader->n_bits += 32;
            reader->place += 4;
            return;
        }
    }
    while (reader->n_bits <= 48) {
        int byte = 0;
        if (reader->place < reader->end && *reader->place != 0xFF) {
            byte = *reader->place++;
        } else if (reader->place + 1 < reader->end && reader->place[1] == 0) {
            byte = 0xFF;
            reader->place += 2;
        } else {
            reader->n_false += 8;
        }
        reader->bits |= (uint64_t)byte << (56 - reader->n_bits);
        reader->n_bits += 8;
    }
}

static inline void pass(Reader *reader, int n) {
    reader->bits <<= n;
    reader->n_bits -= n;
}

/* The entry of a code of more than LOOK bits; 0: it means nothing. */
static ALONE uint32_t long_code(uint64_t bits, const Huffman *table) {
    for (int length = LOOK + 1; length <= 16; length++) {
        int code = (int)(bits >> (64 - length));
        if (code <= table->last[length] && table->shift[length] + code >= 0)
            return entry(length, table->symbols[(table->shift[length] + code) & 255]);
    }
    return 0;
}

static inline uint32_t code(uint64_t bits, const Huffman *table) {
    uint32_t short_code = table->short_code[bits >> (64 - LOOK)];
    return short_code ? short_code : long_code(bits, table);
}

/* The value, of `size` bits, that follows a code of `length`. */
static inline int number(const Reader *reader, int length, int size) {
    int value = (int)(reader->bits << length >> 1 >> (63 - size)); /* of no bits: 0 */
    return value + ((value - ((1 << size) >> 1)) >> 31 & (1 - (1 << size)));
}

static inline int larger(int value, int most) { return (value < 0 ? -value : value) > most; }

static ALONE int block(Reader *shared, Component *part, const Huffman *dc, const Huffman *ac, const int32_t *most) {
    Reader own = *shared, *reader = &own; /* in registers */
    fill(reader);
    uint32_t next = code(reader->bits, dc);
    int size = next >> 16;
    if (!next || size > 11) return BAD_CODE;
    part->before += number(reader, next >> 8 & 255, size);
    pass(reader, next & 255);
    if (larger(part->before, most[0])) return TOO_LARGE;
    for (int k = 1, before = 0, alike = 0; k < 64; k++) {
        fill(reader);
        next = code(reader->bits, ac);
        if (!next) return BAD_CODE;
        int run = next >> 20;
        size = next >> 16 & 15;
        int value = number(reader, next >> 8 & 255, size);
        pass(reader, next & 255);
        if (!size) {
            if (run != 15) break;
            k += 15;
            if (k > 63) return TOO_MANY;
            continue;
        }
        k += run;
        if (k > 63) return TOO_MANY;
        if (size > 10) return BAD_CODE;
        if (larger(value, most[k])) return TOO_LARGE;
        alike = (alike + 1) & -((value == before) & !run);
        if (alike == ALIKE) return HOLE;
        before = value;
    }
    *shared = own;
    return own.n_bits < own.n_false ? SHORT : FINE;
}

/* The end of a segment: less than a byte is left, of ones (or, from some encoders, zeros), then a marker; bytes of zero
 * between them mean nothing. */
static int ends(Reader *reader) {
    int n = reader->n_bits - reader->n_false, rest = n % 8;
    uint64_t bits = n ? reader->bits >> (64 - n) : 0;
    if (n > rest && bits & ((1ull << (n - rest)) - 1)) return LEFT_OVER;
    while (reader->place < reader->end && !*reader->place) reader->place++;
    if (reader->place < reader->end && (*reader->place != 0xFF || (reader->place + 1 < reader->end && !reader->place[1])))
        return LEFT_OVER;
    uint64_t padding = rest ? bits >> (n - rest) & ((1u << rest) - 1) : 0;
    return padding && padding != (1u << rest) - 1 ? BAD_PADDING : FINE;
}

static int restart(Reader *reader, Component *parts, int n_parts, int number_of) {
    int verdict = ends(reader);
    if (verdict) return verdict;
    while (reader->place + 1 < reader->end && reader->place[0] == 0xFF && reader->place[1] == 0xFF) reader->place++;
    if (reader->place + 2 > reader->end || reader->place[1] != 0xD0 + (number_of & 7)) return NO_RESTART;
    reader->place += 2;
    reader->bits = 0;
    reader->n_bits = reader->n_false = 0;
    for (int i = 0; i < n_parts; i++) parts[i].before = 0;
    return FINE;
}

typedef struct {
    Huffman dc[4], ac[4];
    int32_t most[4][64]; /* what a coefficient of each table can be */
    Component parts[4];
    int n_parts, interval, width, height, across, down;
} Picture;

static int scan(Picture *picture, const uint8_t *body, int n, Reader *reader, int64_t *at) {
    Component *used[4];
    int n_used = body[0];
    if (n_used < 1 || n_used > 4 || n < 1 + 2 * n_used) return UNKNOWN;
    for (int i = 0; i < n_used; i++) {
        used[i] = 0;
        for (int k = 0; k < picture->n_parts; k++)
            if (picture->parts[k].id == body[1 + 2 * i]) used[i] = &picture->parts[k];
        if (!used[i]) return UNKNOWN;
        used[i]->dc = body[2 + 2 * i] >> 4 & 3;
        used[i]->ac = body[2 + 2 * i] & 3;
        used[i]->before = 0;
        used[i]->seen = 1;
        if (!picture->dc[used[i]->dc].known || !picture->ac[used[i]->ac].known) return UNKNOWN;
    }
    int wide = (picture->width + 8 * picture->across - 1) / (8 * picture->across);
    int high = (picture->height + 8 * picture->down - 1) / (8 * picture->down);
    if (n_used == 1) wide = used[0]->wide, high = used[0]->high;
    for (int64_t mcu = 0; mcu < (int64_t)wide * high; mcu++) {
        if (picture->interval && mcu && mcu % picture->interval == 0) {
            int verdict = restart(reader, picture->parts, picture->n_parts, (int)(mcu / picture->interval - 1));
            if (verdict) return *at = mcu / wide, verdict;
        }
        for (int i = 0; i < n_used; i++) {
            int n_blocks = n_used == 1 ? 1 : used[i]->across * used[i]->down;
            for (int k = 0; k < n_blocks; k++) {
                int verdict = block(reader, used[i], &picture->dc[used[i]->dc], &picture->ac[used[i]->ac],
                                    picture->most[used[i]->quant]);
                if (verdict) return *at = mcu / wide, verdict;
            }
        }
    }
    *at = high;
    return ends(reader);
}

static int frame(Picture *picture, const uint8_t *body, int n) {
    if (n < 6 || body[0] != 8 || picture->n_parts || n < 6 + 3 * body[5] || body[5] < 1 || body[5] > 4) return 0;
    picture->height = body[1] << 8 | body[2];
    picture->width = body[3] << 8 | body[4];
    picture->n_parts = body[5];
    for (int i = 0; i < picture->n_parts; i++) {
        Component *part = &picture->parts[i];
        part->id = body[6 + 3 * i];
        part->across = body[7 + 3 * i] >> 4;
        part->down = body[7 + 3 * i] & 15;
        part->quant = body[8 + 3 * i] & 3;
        if (!part->across || !part->down || part->across > 4 || part->down > 4) return 0;
        if (part->across > picture->across) picture->across = part->across;
        if (part->down > picture->down) picture->down = part->down;
    }
    for (int i = 0; i < picture->n_parts; i++) {
        Component *part = &picture->parts[i];
        int wide = (picture->width * part->across + picture->across - 1) / picture->across;
        int high = (picture->height * part->down + picture->down - 1) / picture->down;
        part->wide = (wide + 7) / 8;
        part->high = (high + 7) / 8;
    }
    return picture->width && picture->height;
}

/* A sample lies in -128 .. 127, so no dequantised coefficient goes beyond 1024; a rounding step more is allowed. */
enum { PEAK = 1024 };

static int define_steps(Picture *picture, const uint8_t *body, int n) {
    while (n > 0) {
        int deep = body[0] >> 4, size = deep ? 129 : 65;
        if (n < size || body[0] % 16 > 3) return 0;
        for (int i = 0; i < 64; i++) {
            int step = deep ? body[1 + 2 * i] << 8 | body[2 + 2 * i] : body[1 + i];
            picture->most[body[0] & 3][i] = step ? PEAK / step + 1 : INT32_MAX;
        }
        body += size;
        n -= size;
    }
    return 1;
}

static int define_tables(Picture *picture, const uint8_t *body, int n) {
    while (n >= 17) {
        if (body[0] % 16 > 3 || body[0] >> 4 > 1) return 0;
        int size = define_codes(body[0] >> 4 ? &picture->ac[body[0] & 3] : &picture->dc[body[0] & 3], body + 1, n - 1);
        if (!size) return 0;
        body += 1 + size;
        n -= 1 + size;
    }
    return n == 0;
}

/* FINE, or what is wrong; UNKNOWN for all but whole baseline JPEGs of 8 bits. at: the row of blocks where it shows. */
int jpeg_scan(const uint8_t *data, int64_t length, int64_t *at) {
    Picture picture;
    memset(&picture, 0, sizeof picture);
    for (int i = 0; i < 4 * 64; i++) picture.most[i / 64][i % 64] = INT32_MAX;
    int verdict = UNKNOWN, marker;
    for (int64_t place = 2; place + 4 <= length;) {
        if (data[place] != 0xFF) return UNKNOWN;
        marker = data[place + 1];
        if (marker == 0xFF) {
            place++;
            continue;
        }
        if (marker == 0xD9) break;
        int n = (data[place + 2] << 8 | data[place + 3]) - 2;
        const uint8_t *body = data + place + 4;
        if (n < 0 || place + 4 + n > length) return UNKNOWN;
        place += 4 + n;
        if (marker == 0xDB && !define_steps(&picture, body, n)) return UNKNOWN;
        if (marker == 0xC4 && !define_tables(&picture, body, n)) return UNKNOWN;
        if ((marker == 0xC0 || marker == 0xC1) && !frame(&picture, body, n)) return UNKNOWN;
        if (marker == 0xC2 || marker == 0xC3 || (marker > 0xC4 && marker < 0xD0)) return UNKNOWN;
        if (marker == 0xDD && n == 2) picture.interval = body[0] << 8 | body[1];
        if (marker != 0xDA) continue;
        if (!picture.n_parts || n < 1) return UNKNOWN;
        Reader reader = {data + place, data + length, 0, 0, 0};
        verdict = scan(&picture, body, n, &reader, at);
        if (verdict) return verdict;
        place = reader.place - data;
    }
    for (int i = 0; i < picture.n_parts; i++)
        if (!picture.parts[i].seen) return SHORT;
    return verdict;
}
