/* From blocks to qwq_wide, for every integer format: plain loops, compiled once for each ISA by the file that includes
 * this, which says before how a line of q4 is looked up (q4_line) and 32 halves become floats (halves).
 *
 * A block: for each of its groups of 64 columns the codes, then the scales of all. Codes: nibbles, a line for four
 * columns, rows 0-15 in the low ones; then for u5 and u6 a plane of the upper bits, of which byte i of a line holds
 * those of eight or four lines' byte i. */
static void upper_bits(uint8_t (*code)[2][LINE], const uint8_t *plane, int bits)
{
    int in_a_byte = 8 / bits, lines = 2 * LINES / in_a_byte;
    uint8_t mask = (uint8_t)((1 << bits) - 1);
    for (int i = 0; i < lines; i++, plane += LINE)
        for (int j = 0; j < in_a_byte; j++) {
            int line = i * in_a_byte + j, shift = j * bits;
            uint8_t *to = code[line / 2][line % 2];
            for (int b = 0; b < LINE; b++)
                to[b] = (uint8_t)(to[b] | (uint8_t)((uint8_t)(plane[b] >> shift) & mask) << 4);
        }
}

static void unpack_codes(uint8_t (*code)[2][LINE], const uint8_t *from, int32_t codes)
{
    if (codes == QWQ_Q8) {
        __builtin_memcpy(code, from, 2 * NIBBLES);
        return;
    }
    for (int l = 0; l < LINES; l++)
        if (codes == QWQ_Q4)
            q4_line(code[l][0], code[l][1], from + l * LINE);
        else
            for (int b = 0; b < LINE; b++) {
                code[l][0][b] = from[l * LINE + b] & 15;
                code[l][1][b] = from[l * LINE + b] >> 4;
            }
    if (codes == QWQ_U5 || codes == QWQ_U6)
        upper_bits(code, from + NIBBLES, codes == QWQ_U5 ? 1 : 2);
}

/* Codes become code - zero + ZERO_EXCESS, in the lines of a subgroup. */
static void take_zeros(uint8_t (*code)[2][LINE], size_t lines, const uint8_t *zero)
{
    uint8_t less[2][LINE];
    for (int r = 0; r < PANEL; r++)
        for (int b = 0; b < 4; b++)
            less[r / 16][r % 16 * 4 + b] = (uint8_t)(ZERO_EXCESS - zero[r]);
    for (size_t l = 0; l < lines; l++)
        for (int b = 0; b < LINE; b++) {
            code[l][0][b] = (uint8_t)(code[l][0][b] + less[0][b]);
            code[l][1][b] = (uint8_t)(code[l][1][b] + less[1][b]);
        }
}

static void unpack(qwq_wide *wide, const uint8_t *blocks, size_t groups, const qwq_format *format,
                   const qwq_layout *layout)
{
    size_t per_block = layout->columns / GROUP, n = layout->columns / (size_t)format->group;
    for (size_t g = 0; g < groups; g++, wide++) {
        const uint8_t *block = blocks + g / per_block * layout->bytes;
        const uint8_t *scales = block + per_block * layout->codes;
        unpack_codes(wide->code, block + g % per_block * layout->codes, format->codes);
        float d[PANEL], least[PANEL];
        if (format->scales == QWQ_SUPER || format->scales == QWQ_SUPER_MIN)
            halves(d, scales);
        if (format->scales == QWQ_SUPER_MIN)
            halves(least, scales + 2 * PANEL);
        for (size_t s = 0; s < layout->subgroups; s++) {
            size_t at = (g % per_block * GROUP + s * GROUP / layout->subgroups) / (size_t)format->group;
            const uint8_t *bytes;
            switch (format->scales) {
            case QWQ_SUPER:
                bytes = scales + (2 + at) * PANEL;
                for (int r = 0; r < PANEL; r++)
                    wide->scale[s][r] = d[r] * (float)(int8_t)bytes[r];
                break;
            case QWQ_SUPER_MIN:
                bytes = scales + (4 + at) * PANEL;
                for (int r = 0; r < PANEL; r++) {
                    wide->scale[s][r] = d[r] * (float)bytes[r];
                    wide->offset[s][r] = -(least[r] * (float)bytes[n * PANEL + (size_t)r]);
                }
                break;
            default:
                halves(wide->scale[s], scales + at * 2 * PANEL);
                if (format->scales == QWQ_OFFSET)
                    halves(wide->offset[s], scales + (n + at) * 2 * PANEL);
                if (format->scales == QWQ_ZERO)
                    take_zeros(wide->code + s * LINES / layout->subgroups, LINES / layout->subgroups,
                               scales + (2 * n + at) * PANEL);
            }
        }
    }
}
