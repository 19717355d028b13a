/* Codes in words of 32 bits, as files of MLX, GPTQ and AWQ store them. */
#include "common/check.h"
#include "common/packing.h"

enum { WORD = 32, MOST_BITS = 8, UNIT = 8 };

/* The codes of MLX: a row's `bits` bytes hold 8 codes, the lowest bits first. They are spread in three steps: 8 codes
 * are 2 times 4, and so on. */
static inline uint64_t spread(uint64_t x, const int bits)
{
    const uint64_t four = ((uint64_t)1 << 4 * bits) - 1, two = (((uint64_t)1 << 2 * bits) - 1) * 0x0000000100000001u;
    const uint64_t one = (((uint64_t)1 << bits) - 1) * 0x0001000100010001u;
    x = (x & four) | (x >> 4 * bits & four) << 32;
    x = (x & two) | (x >> 2 * bits & two) << 16;
    return (x & one) | (x >> bits & one) << 8;
}

/* Reads 8 bytes for each unit, some of which are the next unit's: up to 8 bytes beyond the codes. */
static inline __attribute__((always_inline)) void stream_of(uint8_t *code, const uint8_t *from, const int bits)
{
    uint64_t unit[GROUP / UNIT];
    for (int i = 0; i < GROUP / UNIT; i++)
        memcpy(&unit[i], from + i * bits, UNIT);
    for (int i = 0; i < GROUP / UNIT; i++)
        unit[i] = spread(unit[i], bits);
    memcpy(code, unit, GROUP);
}

/* 64 codes, of 8 * bits bytes. */
static void unpack_stream(uint8_t *code, const uint8_t *from, int bits)
{
    switch (bits) {
    case 2: stream_of(code, from, 2); break;
    case 3: stream_of(code, from, 3); break;
    case 4: stream_of(code, from, 4); break;
    case 5: stream_of(code, from, 5); break;
    case 6: stream_of(code, from, 6); break;
    default: stream_of(code, from, 7);
    }
}

static void gather_rows(qwq_lines lines, const qwq_weight *w, size_t n, size_t rows, size_t k, size_t columns, size_t K)
{
    const qwq_words *words = w->words;
    size_t bits = (size_t)words->bits;
    if (bits == MOST_BITS) {
        qwq_gather_bytes(lines, (const uint8_t *)(words->words + n * words->ld) + k, rows, columns, words->ld * 4);
        return;
    }
    for (size_t r = 0; r < rows; r++) {
        const uint8_t *from = (const uint8_t *)(words->words + (n + r) * words->ld) + k * bits / 8;
        uint8_t code[GROUP], rest[GROUP + UNIT];
        if ((K - k) * bits / 8 < (GROUP - UNIT) * bits / 8 + UNIT) { /* a row's end: nothing is read beyond it */
            memset(rest, 0, sizeof rest);
            from = memcpy(rest, from, columns * bits / 8);
        }
        unpack_stream(code, from, (int)bits);
        uint8_t *to = lines[0][r / 16] + r % 16 * 4;
        for (size_t i = 0; i + 4 <= columns; i += 4)
            memcpy(to + i / 4 * 2 * LINE, code + i, 4);
    }
}

/* One column of up to 32 rows, each in its word at `from`, and above it, if the codes lie in two words. */
static inline __attribute__((always_inline)) void or_column(uint32_t *four, const uint32_t *from, size_t ld,
                                                            unsigned shift, unsigned bits, unsigned to, size_t rows)
{
    const uint32_t mask = (1u << bits) - 1;
    if (shift + bits <= WORD)
        for (size_t r = 0; r < rows; r++)
            four[r] |= (from[r] >> shift & mask) << to;
    else
        for (size_t r = 0; r < rows; r++)
            four[r] |= ((from[r] >> shift | from[r + ld] << (WORD - shift)) & mask) << to;
}

/* Four columns of the lines are 32 numbers of 32 bits, one for each row. */
static void gather_columns(qwq_lines lines, const qwq_weight *w, size_t n, size_t rows, size_t k, size_t columns,
                           size_t K)
{
    const qwq_words *words = w->words;
    unsigned bits = (unsigned)words->bits;
    (void)K;
    for (size_t i = 0; i < columns; i += 4) {
        uint32_t four[PANEL] = {0};
        for (size_t j = i; j < smaller(i + 4, columns); j++) {
            size_t bit = (words->order ? (size_t)words->order[k + j] : k + j) * bits;
            const uint32_t *from = words->words + bit / WORD * words->ld + n;
            unsigned to = (unsigned)(8 * (j - i));
            if (rows == PANEL)
                or_column(four, from, words->ld, bit % WORD, bits, to, PANEL);
            else
                or_column(four, from, words->ld, bit % WORD, bits, to, rows);
        }
        memcpy(lines[i / 4], four, rows * 4);
    }
}

typedef uint32_t quad __attribute__((vector_size(16)));

/* Bytes b of four numbers, for each b: a transposition in three steps, of four words at once. */
static inline void transpose(quad *to, const quad *x)
{
    const uint32_t even = 0x00FF00FFu, low = 0xFFFFu;
    quad a = (x[0] & even) | (x[1] & even) << 8, b = (x[0] >> 8 & even) | (x[1] & ~even);
    quad c = (x[2] & even) | (x[3] & even) << 8, d = (x[2] >> 8 & even) | (x[3] & ~even);
    to[0] = (a & low) | c << 16;
    to[1] = (b & low) | d << 16;
    to[2] = a >> 16 | (c & ~low);
    to[3] = b >> 16 | (d & ~low);
}

/* The words of 32 rows are four neighbours. Nibbles 0, 2, 4, 6 of a word are rows 0, 4, 1, 5 of eight, and nibbles 1,
 * 3, 5, 7 rows 2, 6, 3, 7. */
static void gather_eights(qwq_lines lines, const qwq_weight *w, size_t n, size_t rows, size_t k, size_t columns,
                          size_t K)
{
    static const uint8_t row[PANEL / 4] = {0, 4, 1, 5, 2, 6, 3, 7};
    const qwq_words *words = w->words;
    size_t count = up(rows, 8) / 8;
    (void)K;
    for (size_t i = 0; i < columns; i += 4) {
        const uint32_t *from = words->words + (k + i) * words->ld + n / 8;
        quad word[4] = {{0}}, half[4], turned[8];
        for (size_t j = 0; j < smaller(4, columns - i); j++)
            if (count == 4)
                memcpy(&word[j], from + j * words->ld, sizeof(quad));
            else
                memcpy(&word[j], from + j * words->ld, count * 4);
        for (int odd = 0; odd < 2; odd++) {
            for (int j = 0; j < 4; j++)
                half[j] = word[j] >> 4 * odd & 0x0F0F0F0Fu;
            transpose(turned + 4 * odd, half);
        }
        uint32_t four[PANEL];
        for (int j = 0; j < PANEL / 4; j++)
            for (int c = 0; c < 4; c++)
                four[8 * c + row[j]] = turned[j][c];
        if (rows == PANEL)
            memcpy(lines[i / 4], four, sizeof four);
        else
            memcpy(lines[i / 4], four, rows * 4);
    }
}

int qwq_check_words(const qwq_words *w, const qwq_format *format, size_t N, size_t K)
{
    const qwq_code_type *type = &qwq_code_types[format->codes];
    size_t bits = (size_t)w->bits;
    if (type->floats || type->excess || w->layout < 0 || w->layout >= QWQ_WORD_LAYOUTS) /* q4 and q8 have levels */
        return QWQ_EFORMAT;
    if (w->bits < 2 || w->bits > MOST_BITS || w->bits > type->bits || (w->layout == QWQ_EIGHTS && w->bits != 4))
        return QWQ_EFORMAT;
    if (w->order && w->layout != QWQ_COLUMNS)
        return QWQ_EFORMAT;
    size_t least[] = {[QWQ_ROWS] = K * bits / WORD, [QWQ_COLUMNS] = N, [QWQ_EIGHTS] = up(N, 8) / 8};
    if (w->ld > QWQ_MOST_SIZE || w->ld < least[w->layout] || (w->layout != QWQ_EIGHTS && K * bits % WORD))
        return QWQ_ESIZE;
    return 0;
}

size_t qwq_count_words(const qwq_words *w, size_t N, size_t K)
{
    size_t of_columns = K * (size_t)w->bits / WORD;
    switch (w->layout) {
    case QWQ_ROWS: return (N - 1) * w->ld + of_columns;
    case QWQ_COLUMNS: return (of_columns - 1) * w->ld + N;
    default: return (K - 1) * w->ld + up(N, 8) / 8;
    }
}

gather_fn *qwq_gather_words(const qwq_words *w)
{
    return w->layout == QWQ_ROWS ? gather_rows : w->layout == QWQ_COLUMNS ? gather_columns : gather_eights;
}
