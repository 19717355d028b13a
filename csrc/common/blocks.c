/* Decoding ggml's blocks. qwq_ref/formats/gguf/blocks.py says the same in NumPy, and tests compare both. */
#include "common/blocks.h"

#define INLINE static inline __attribute__((always_inline))

/* Where a group's scale, and what goes with it, stand in Q4_K and Q5_K. */
enum { MOST_LEVEL = 16, SHORT = 32, LONG = 256, GROUPS = 8 };

/* The levels of the 4-bit codes of IQ4_NL and IQ4_XS. */
static const int8_t LEVELS[MOST_LEVEL] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

INLINE void half(uint8_t *restrict to, const uint8_t *restrict from)
{
    to[0] = from[0];
    to[1] = from[1];
}

/* The lower halves of `run` bytes are `run` neighbouring columns, their upper halves the next ones. */
INLINE void nibbles(uint8_t *restrict code, const uint8_t *restrict from, const int run, const int bytes)
{
    for (int i = 0; i < bytes; i += run)
        for (int j = 0; j < run; j++) {
            code[2 * i + j] = from[i + j] & 15;
            code[2 * i + run + j] = from[i + j] >> 4;
        }
}

/* The lowest `width` bits of `run` bytes are bits of `run` neighbouring columns, from bit `to` on, and the bits above
 * them of the next ones. */
INLINE void or_bits(uint8_t *restrict code, const uint8_t *restrict from, const int width, const int run,
                    const int bytes, const int to)
{
    for (int i = 0; i < bytes; i += run)
        for (int shift = 0; shift < 8; shift += width)
            for (int j = 0; j < run; j++)
                *code++ |= (uint8_t)((from[i + j] >> shift & ((1 << width) - 1)) << to);
}

/* Bit k of 4 bytes is the upper bit of column k of Q5_0 and Q5_1: eight columns at a time. */
INLINE void or_fifth_bits(uint8_t *restrict code, const uint8_t *restrict from)
{
    for (int i = 0; i < 4; i++, code += 8) {
        uint64_t eight, bits = from[i] * 0x0101010101010101u & 0x8040201008040201u;
        bits = (bits + 0x7F7F7F7F7F7F7F7Fu) >> 3 & 0x1010101010101010u;
        memcpy(&eight, code, 8);
        eight |= bits;
        memcpy(code, &eight, 8);
    }
}

static void q4_0(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    half(to->scale, from);
    nibbles(code, from + 2, 16, 16);
}

static void q4_1(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    half(to->scale, from);
    half(to->offset, from + 2);
    nibbles(code, from + 4, 16, 16);
}

static void q5_0(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    half(to->scale, from);
    nibbles(code, from + 6, 16, 16);
    or_fifth_bits(code, from + 2);
}

static void q5_1(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    half(to->scale, from);
    half(to->offset, from + 2);
    nibbles(code, from + 8, 16, 16);
    or_fifth_bits(code, from + 4);
}

static void q8_0(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    half(to->scale, from);
    memcpy(code, from + 2, SHORT);
}

/* Codes that are numbers of LEVELS. */
INLINE void levels(uint8_t *code, const int count)
{
    for (int i = 0; i < count; i++)
        code[i] = (uint8_t)LEVELS[code[i]];
}

static void iq4_nl(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    half(to->scale, from);
    nibbles(code, from + 2, 16, 16);
    levels(code, SHORT);
}

/* 16 bytes of scales (low) and mins (high), 64 bytes of codes, d, dmin. */
static void q2_k(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    for (int i = 0; i < MOST_GROUPS; i++) {
        to->sub_scale[i] = from[i] & 15;
        to->sub_min[i] = from[i] >> 4;
    }
    memset(code, 0, LONG);
    or_bits(code, from + 16, 2, 32, 64, 0);
    half(to->scale, from + 80);
    half(to->offset, from + 82);
}

/* 32 bytes of upper bits, 64 bytes of lower bits, 12 bytes of 16 scales of 6 bits, d. */
static void q3_k(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    memset(code, 0, LONG);
    or_bits(code, from + 32, 2, 32, 64, 0);
    or_bits(code, from, 1, 32, 32, 2);
    nibbles(to->sub_scale, from + 96, 8, 8);
    or_bits(to->sub_scale, from + 104, 2, 4, 4, 4);
    for (int i = 0; i < MOST_GROUPS; i++)
        to->sub_scale[i] = (uint8_t)(to->sub_scale[i] - 32);
    half(to->scale, from + 108);
}

/* d, dmin, and 12 bytes: 0 to 3 hold the first four scales in six bits, 4 to 7 the first four mins. The last four of
 * both have their lower four bits in bytes 8 to 11, and their upper two in the upper two of bytes 0 to 7. */
INLINE void six_bits(qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    half(to->scale, from);
    half(to->offset, from + 2);
    const uint8_t *scale = from + 4, *least = from + 8, *rest = from + 12;
    for (int i = 0; i < GROUPS / 2; i++) {
        to->sub_scale[i] = scale[i] & 63;
        to->sub_min[i] = least[i] & 63;
        to->sub_scale[GROUPS / 2 + i] = (uint8_t)((rest[i] & 15) | scale[i] >> 6 << 4);
        to->sub_min[GROUPS / 2 + i] = (uint8_t)(rest[i] >> 4 | least[i] >> 6 << 4);
    }
}

/* 128 bytes of codes. */
static void q4_k(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    six_bits(to, from);
    nibbles(code, from + 16, 32, 128);
}

/* 32 bytes of upper bits, 128 bytes of lower bits. */
static void q5_k(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    six_bits(to, from);
    nibbles(code, from + 48, 32, 128);
    or_bits(code, from + 16, 1, 32, 32, 4);
}

/* 128 bytes of lower bits, 64 bytes of upper bits, 16 scales, d. */
static void q6_k(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    nibbles(code, from, 64, 128);
    or_bits(code, from + 128, 2, 32, 64, 4);
    memcpy(to->sub_scale, from + 192, MOST_GROUPS);
    half(to->scale, from + 208);
}

/* d, 2 bytes of the upper two bits of 8 scales, 4 bytes of their lower bits, 128 bytes of codes. */
static void iq4_xs(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from)
{
    half(to->scale, from);
    for (int i = 0; i < GROUPS; i++) {
        int low = from[4 + i / 2] >> i % 2 * 4 & 15, high = from[2 + i / 4] >> i % 4 * 2 & 3;
        to->sub_scale[i] = (uint8_t)((low | high << 4) - 32);
    }
    nibbles(code, from + 8, 16, 128);
    levels(code, LONG);
}

const qwq_block_type qwq_block_types[QWQ_BLOCK_TYPES] = {
    {"Q4_0", SHORT, 18, {QWQ_U4, 32, QWQ_PLAIN, 8}, q4_0},
    {"Q4_1", SHORT, 20, {QWQ_U4, 32, QWQ_OFFSET, 0}, q4_1},
    {"Q5_0", SHORT, 22, {QWQ_U5, 32, QWQ_PLAIN, 16}, q5_0},
    {"Q5_1", SHORT, 24, {QWQ_U5, 32, QWQ_OFFSET, 0}, q5_1},
    {"Q8_0", SHORT, 34, {QWQ_Q8, 32, QWQ_PLAIN, 0}, q8_0},
    {"IQ4_NL", SHORT, 18, {QWQ_Q8, 32, QWQ_PLAIN, 0}, iq4_nl},
    {"Q2_K", LONG, 84, {QWQ_U4, 16, QWQ_SUPER_MIN, 0}, q2_k},
    {"Q3_K", LONG, 110, {QWQ_U4, 16, QWQ_SUPER, 4}, q3_k},
    {"Q4_K", LONG, 144, {QWQ_U4, 32, QWQ_SUPER_MIN, 0}, q4_k},
    {"Q5_K", LONG, 176, {QWQ_U5, 32, QWQ_SUPER_MIN, 0}, q5_k},
    {"Q6_K", LONG, 210, {QWQ_U6, 16, QWQ_SUPER, 32}, q6_k},
    {"IQ4_XS", LONG, 136, {QWQ_Q8, 32, QWQ_SUPER, 0}, iq4_xs},
};

const char *qwq_block_name(int type)
{
    return type >= 0 && type < QWQ_BLOCK_TYPES ? qwq_block_types[type].name : NULL;
}

size_t qwq_block_of(qwq_format *format, size_t *columns, int type)
{
    if (type < 0 || type >= QWQ_BLOCK_TYPES || !format || !columns)
        return 0;
    *format = qwq_block_types[type].format;
    *columns = qwq_block_types[type].columns;
    return qwq_block_types[type].bytes;
}
