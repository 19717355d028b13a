/* From blocks to qwq_wide, for every integer format: plain loops, compiled once for each ISA by the file that includes
 * this, which says before how a line of q4 is looked up (q4_line), how 32 halves become floats (halves), and how 32
 * floats are multiplied with bytes (bytes_times, signed_bytes_times).
 *
 * A block: for each of its groups of 64 columns the codes, then the scales of all. Codes: nibbles, a line for four
 * columns, rows 0-15 in the low ones; then for u5 and u6 a plane of the upper bits, of which byte i of a line holds
 * those of eight or four lines' byte i. */
typedef uint8_t line_of_bytes __attribute__((vector_size(LINE), aligned(1), may_alias));

/* Bits at `shift` of two lines of codes, from a plane that holds `bits` of each. */
static inline __attribute__((always_inline)) void add_plane(line_of_bytes *code, const line_of_bytes *plane, int l,
                                                            const int bits, const int shift)
{
    const int in_a_byte = 8 / bits;
    const uint8_t mask = (uint8_t)((1 << bits) - 1);
    line_of_bytes two = plane[l / in_a_byte] >> (uint8_t)(l % in_a_byte * bits);
    code[0] |= (two & mask) << (uint8_t)shift;
    code[1] |= ((two >> (uint8_t)bits) & mask) << (uint8_t)shift;
}

/* A plane of nibbles, and up to two planes of upper bits; 0 where there is none. */
static inline __attribute__((always_inline)) void planes_to_bytes(uint8_t (*code)[2][LINE], const uint8_t *from,
                                                                  const int second, const int third)
{
    const line_of_bytes *nibbles = (const line_of_bytes *)(const void *)from, *plane = nibbles + LINES;
    line_of_bytes *to = (line_of_bytes *)(void *)code;
    for (int l = 0; l < 2 * LINES; l += 2) {
        line_of_bytes pair[2] = {nibbles[l / 2] & 15, nibbles[l / 2] >> 4};
        if (second)
            add_plane(pair, plane, l, second, 4);
        if (third)
            add_plane(pair, plane + LINES * second / 4, l, third, 4 + second);
        to[l] = pair[0];
        to[l + 1] = pair[1];
    }
}

static inline void q4_to_bytes(uint8_t (*code)[2][LINE], const uint8_t *from)
{
    for (int l = 0; l < LINES; l++)
        q4_line(code[l][0], code[l][1], from + l * LINE);
}

static inline void bytes_to_bytes(uint8_t (*code)[2][LINE], const uint8_t *from)
{
    __builtin_memcpy(code, from, 2 * NIBBLES);
}

/* What is added to every byte of a code so that it becomes code - zero point + ZERO_EXCESS: for a row four times the
 * same. Or each row's zero point, where the layout has row_zeros. */
typedef union {
    uint32_t rows[PANEL];
    uint8_t bytes[2][LINE];
} qwq_zeros;

/* 32 upper halves of floats. */
static inline void upper_halves(float *to, const uint8_t *from)
{
    for (size_t r = 0; r < PANEL; r++)
        ((uint32_t *)(void *)to)[r] = (uint32_t)((const uint16_t *)(const void *)from)[r] << 16;
}

/* 32 scales or offsets of 16 bits. */
static inline void sixteen_bits(float *to, const uint8_t *from, int32_t scales)
{
    if (scales == QWQ_OFFSET_BF16)
        upper_halves(to, from);
    else
        halves(to, from);
}

/* The scales of subgroup s of group `part` of a block, and its offsets or zeros, as the format has them. */
static inline void unpack_scales(float *scale, float *offset, qwq_zeros *zeros, const uint8_t *block, size_t part,
                                 size_t s, const qwq_format *format, const qwq_layout *layout)
{
    const uint8_t *scales = block + layout->scales_at;
    size_t at = (part * GROUP + s * GROUP / layout->subgroups) >> layout->group_bits, n = layout->in_block;
    const uint32_t ones = 0x01010101u, times = layout->row_zeros ? 1 : 0u - ones;
    const uint32_t first = layout->row_zeros ? 0 : ZERO_EXCESS * ones;
    float d[PANEL], dmin[PANEL];
    switch (format->scales) {
    case QWQ_SUPER:
        halves(d, scales);
        signed_bytes_times(scale, scales + (2 + at) * PANEL, d);
        break;
    case QWQ_SUPER_MIN:
        halves(d, scales);
        halves(dmin, scales + 2 * PANEL);
        bytes_times(scale, scales + (4 + at) * PANEL, d);
        for (int r = 0; r < PANEL; r++)
            dmin[r] = -dmin[r];
        bytes_times(offset, scales + (4 + n + at) * PANEL, dmin);
        break;
    default:
        sixteen_bits(scale, scales + at * 2 * PANEL, format->scales);
        if (layout->offset)
            sixteen_bits(offset, scales + (n + at) * 2 * PANEL, format->scales);
        if (format->scales == QWQ_ZERO) /* without row_zeros: ZERO_EXCESS - zero in each byte */
            for (int r = 0; r < PANEL; r++)
                zeros->rows[r] = first + times * scales[(2 * n + at) * PANEL + (size_t)r];
    }
}

/* The scales of group `part` of a block, and its zero points, which are taken off codes of less than 8 bits. */
static inline void unpack_rest(qwq_wide *wide, const uint8_t *block, size_t part, const qwq_format *format,
                               const qwq_layout *layout)
{
    size_t lines = 2 * LINES / layout->subgroups;
    uint8_t *code = wide->code[0][0];
    for (size_t s = 0; s < layout->subgroups; s++, code += lines * LINE) {
        qwq_zeros zeros;
        unpack_scales(wide->scale[s], wide->offset[s], &zeros, block, part, s, format, layout);
        if (layout->row_zeros)
            __builtin_memcpy(wide->zero[s], zeros.rows, sizeof zeros.rows);
        if (format->scales == QWQ_ZERO && !layout->row_zeros)
            for (size_t l = 0; l < lines; l++) /* as bytes: GCC 12 takes longer vectors than it has through memory */
                for (size_t b = 0; b < LINE; b++)
                    code[l * LINE + b] = (uint8_t)(code[l * LINE + b] + zeros.bytes[l % 2][b]);
    }
}

/* unpack_NAME: group `part` of a block, its codes by TO_BYTES(code, from, ...). */
#define UNPACK(NAME, TO_BYTES, ...)                                                                                    \
    __attribute__((unused)) static void unpack_##NAME(qwq_wide *wide, const uint8_t *block, size_t part,               \
                                                      const qwq_format *format, const qwq_layout *layout)              \
    {                                                                                                                  \
        TO_BYTES(wide->code, block + part * layout->code_bytes, ##__VA_ARGS__);                                        \
        unpack_rest(wide, block, part, format, layout);                                                                \
    }

UNPACK(q4, q4_to_bytes)
UNPACK(bytes, bytes_to_bytes)

/* Groups of floats of 16 bits as blocks of fp32. */
__attribute__((unused)) static void widen_fp16(float *to, const uint8_t *blocks, size_t groups)
{
    for (size_t i = 0; i < groups * GROUP; i++, blocks += 2 * PANEL, to += PANEL)
        halves(to, blocks);
}

__attribute__((unused)) static void widen_bf16(float *to, const uint8_t *blocks, size_t groups)
{
    for (size_t i = 0; i < groups * GROUP; i++, blocks += 2 * PANEL, to += PANEL)
        upper_halves(to, blocks);
}
