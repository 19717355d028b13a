/* From blocks to qwq_wide, for every integer format: plain loops, compiled once for each ISA by the file that includes
 * this, which says before how a line of q4 is looked up (q4_line), how 32 halves become floats (halves), and how 32
 * floats are multiplied with bytes (bytes_times, signed_bytes_times).
 *
 * A block: for each of its groups of 64 columns the codes, then the scales of all. Codes: nibbles, a line for four
 * columns, rows 0-15 in the low ones; then for u5 and u6 a plane of the upper bits, of which byte i of a line holds
 * those of eight or four lines' byte i. */
typedef uint8_t line_of_bytes __attribute__((vector_size(LINE), aligned(1), may_alias));

static inline void unpack_codes(uint8_t (*code)[2][LINE], const uint8_t *from, int32_t codes)
{
    if (codes == QWQ_Q8) {
#ifdef SIGNED_BYTES
        const line_of_bytes *bytes = (const line_of_bytes *)(const void *)from;
        for (int l = 0; l < 2 * LINES; l++)
            ((line_of_bytes *)(void *)code)[l] = bytes[l] ^ Q8_EXCESS;
#else
        __builtin_memcpy(code, from, 2 * NIBBLES);
#endif
        return;
    }
    if (codes == QWQ_Q4) {
        for (int l = 0; l < LINES; l++)
            q4_line(code[l][0], code[l][1], from + l * LINE);
        return;
    }
    const line_of_bytes *nibbles = (const line_of_bytes *)(const void *)from, *plane = nibbles + LINES;
    line_of_bytes *to = (line_of_bytes *)(void *)code;
    int bits = codes == QWQ_U4 ? 0 : codes == QWQ_U5 ? 1 : 2, in_a_byte = bits == 1 ? 8 : 4;
    for (int l = 0; l < 2 * LINES; l += 2) {
        line_of_bytes first = nibbles[l / 2] & 15, second = nibbles[l / 2] >> 4;
        if (bits) {
            line_of_bytes upper = plane[l / in_a_byte] >> (uint8_t)(l % in_a_byte * bits);
            uint8_t mask = bits == 1 ? 1 : 3;
            first |= (upper & mask) << 4;
            second |= ((upper >> (uint8_t)bits) & mask) << 4;
        }
        to[l] = first;
        to[l + 1] = second;
    }
}

/* What is added to every byte of a code so that it becomes code - zero + ZERO_EXCESS: for a row four times the same. */
typedef union {
    uint32_t rows[PANEL];
    line_of_bytes lines[2];
} zeros;

/* The scales of subgroup s of group `part` of a block, and its offsets or zeros, as the format has them. */
static inline void unpack_scales(float *scale, float *offset, zeros *less, const uint8_t *block, size_t part, size_t s,
                                 const qwq_format *format, const qwq_layout *layout)
{
    const uint8_t *scales = block + layout->scales;
    size_t at = (part * GROUP + s * GROUP / layout->subgroups) >> layout->group_bits, n = layout->in_block;
    float d[PANEL], least[PANEL];
    switch (format->scales) {
    case QWQ_SUPER:
        halves(d, scales);
        signed_bytes_times(scale, scales + (2 + at) * PANEL, d);
        break;
    case QWQ_SUPER_MIN:
        halves(d, scales);
        halves(least, scales + 2 * PANEL);
        bytes_times(scale, scales + (4 + at) * PANEL, d);
        for (int r = 0; r < PANEL; r++)
            least[r] = -least[r];
        bytes_times(offset, scales + (4 + n + at) * PANEL, least);
        break;
    default:
        halves(scale, scales + at * 2 * PANEL);
        if (format->scales == QWQ_OFFSET)
            halves(offset, scales + (n + at) * 2 * PANEL);
        if (format->scales == QWQ_ZERO)
            for (int r = 0; r < PANEL; r++)
                less->rows[r] = (uint32_t)(ZERO_EXCESS - scales[(2 * n + at) * PANEL + (size_t)r]) * 0x01010101u;
    }
}

/* Group `part` of a block. */
static void unpack(qwq_wide *wide, const uint8_t *block, size_t part, const qwq_format *format,
                   const qwq_layout *layout)
{
    size_t lines = 2 * LINES / layout->subgroups;
    line_of_bytes *code = (line_of_bytes *)(void *)wide->code;
    unpack_codes(wide->code, block + part * layout->codes, format->codes);
    for (size_t s = 0; s < layout->subgroups; s++, code += lines) {
        zeros less;
        unpack_scales(wide->scale[s], wide->offset[s], &less, block, part, s, format, layout);
        for (size_t l = 0; format->scales == QWQ_ZERO && l < lines; l++)
            code[l] += less.lines[l % 2];
    }
}

/* Groups of bf16 or fp16 as blocks of fp32. */
static void widen(float *to, const uint8_t *blocks, size_t groups, int32_t codes)
{
    for (size_t i = 0; i < groups * GROUP; i++, blocks += 2 * PANEL, to += PANEL)
        if (codes == QWQ_FP16)
            halves(to, blocks);
        else
            for (size_t r = 0; r < PANEL; r++)
                ((uint32_t *)(void *)to)[r] = (uint32_t)((const uint16_t *)(const void *)blocks)[r] << 16;
}
