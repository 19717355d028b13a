/* The table of formats, and what follows from it for one format. qwq_ref/core/formats.py has the same table. */
#include "common/formats.h"

#include <string.h>

#include "common/check.h"

#define SCALES(kind) (1u << QWQ_##kind)
enum { ANY_GROUP = 16 + 32 + 64 + 128, SUPER = 256 };
static const unsigned ANY_SCALES =
    SCALES(PLAIN) | SCALES(ZERO) | SCALES(OFFSET) | SCALES(OFFSET_BF16) | SCALES(SUPER) | SCALES(SUPER_MIN);

typedef uint16_t line_of_words __attribute__((vector_size(LINE), aligned(1), may_alias));

/* The plane that holds `bits` of each code, from bit `shift` on: a byte has those of 8 / bits lines. Words are shifted,
 * which processors can do; what comes from the byte beside is masked out. */
static inline __attribute__((always_inline)) void put_plane(uint8_t *to, const uint8_t (*code)[2][LINE], int shift,
                                                            const int bits)
{
    const line_of_words *line = (const line_of_words *)(const void *)code, *end = line + 2 * LINES;
    const uint16_t mask = (uint16_t)(((1 << bits) - 1) * 0x0101);
    for (; line < end; line += 8 / bits, to += LINE) {
        line_of_words both = {0};
        for (int i = 0; i < 8 / bits; i++)
            both |= (line[i] >> (uint16_t)shift & mask) << (uint16_t)(i * bits);
        *(line_of_words *)(void *)to = both;
    }
}

static void put_planes(uint8_t *to, const uint8_t (*code)[2][LINE], const qwq_layout *layout)
{
    int shift = 0;
    for (const uint8_t *bits = layout->planes; *bits; to += NIBBLES / 4 * *bits, shift += *bits++)
        switch (*bits) {
        case 1: put_plane(to, code, shift, 1); break;
        case 2: put_plane(to, code, shift, 2); break;
        default: put_plane(to, code, shift, 4); break;
        }
}

static void put_u8(uint8_t *to, const uint8_t (*code)[2][LINE], const qwq_layout *layout)
{
    (void)layout;
    memcpy(to, code, 2 * NIBBLES);
}

static void put_q8(uint8_t *to, const uint8_t (*code)[2][LINE], const qwq_layout *layout)
{
    const uint8_t *bytes = code[0][0];
    (void)layout;
    for (int b = 0; b < 2 * NIBBLES; b++)
        to[b] = bytes[b] ^ Q8_EXCESS;
}

const qwq_code_type qwq_code_types[QWQ_CODE_TYPES] = {
    [QWQ_Q4] = {.name = "q4",
                .bits = 4,
                .element = 1,
                .groups = GROUP,
                .scales = SCALES(PLAIN),
                .excess = Q4_EXCESS,
                .most = 127,
                .planes = {4},
                .put = put_planes,
                .unpack = qwq_unpack_q4},
    [QWQ_U4] = {.name = "u4",
                .bits = 4,
                .element = 1,
                .groups = ANY_GROUP,
                .scales = ANY_SCALES,
                .zero_point = 63,
                .most = 15,
                .planes = {4},
                .put = put_planes,
                .unpack = qwq_unpack_planes},
    [QWQ_U5] = {.name = "u5",
                .bits = 5,
                .element = 1,
                .groups = ANY_GROUP,
                .scales = ANY_SCALES,
                .zero_point = 63,
                .most = 31,
                .planes = {4, 1},
                .put = put_planes,
                .unpack = qwq_unpack_planes},
    [QWQ_U6] = {.name = "u6",
                .bits = 6,
                .element = 1,
                .groups = ANY_GROUP,
                .scales = ANY_SCALES,
                .zero_point = 63,
                .most = 63,
                .planes = {4, 2},
                .put = put_planes,
                .unpack = qwq_unpack_planes},
    [QWQ_U8] = {.name = "u8",
                .bits = 8,
                .element = 1,
                .groups = ANY_GROUP,
                .scales = ANY_SCALES,
                .zero_point = 255,
                .most = 255,
                .put = put_u8,
                .unpack = qwq_unpack_bytes},
    [QWQ_Q8] = {.name = "q8",
                .bits = 8,
                .element = 1,
                .groups = ANY_GROUP,
                .scales = SCALES(PLAIN) | SCALES(SUPER),
                .excess = Q8_EXCESS,
                .most = 255,
                .put = put_q8,
                .unpack = qwq_unpack_bytes},
    [QWQ_BF16] = {.name = "bf16", .bits = 16, .element = 2, .floats = 1},
    [QWQ_FP16] = {.name = "fp16", .bits = 16, .element = 2, .floats = 1},
    [QWQ_FP32] = {.name = "fp32", .bits = 32, .element = 4, .floats = 1},
};

const qwq_scales qwq_scale_kinds[QWQ_SCALE_KINDS] = {
    [QWQ_PLAIN] = {.name = "plain", .of_group = 2, .zero_point = 1},
    [QWQ_ZERO] = {.name = "zero", .of_group = 3},
    [QWQ_OFFSET] = {.name = "offset", .of_group = 4, .offset = 1},
    [QWQ_OFFSET_BF16] = {.name = "offset_bf16", .of_group = 4, .offset = 1},
    [QWQ_SUPER] = {.name = "super", .of_block = 2, .of_group = 1, .super = 1, .zero_point = 1},
    [QWQ_SUPER_MIN] = {.name = "super_min", .of_block = 4, .of_group = 2, .super = 1, .offset = 1},
};

const char *qwq_code_name(int codes)
{
    return codes >= 0 && codes < QWQ_CODE_TYPES ? qwq_code_types[codes].name : NULL;
}

const char *qwq_scales_name(int scales)
{
    return scales >= 0 && scales < QWQ_SCALE_KINDS ? qwq_scale_kinds[scales].name : NULL;
}

static int exists(const qwq_format *f)
{
    if (f->codes < 0 || f->codes >= QWQ_CODE_TYPES || f->scales < 0 || f->scales >= QWQ_SCALE_KINDS)
        return 0;
    const qwq_code_type *type = &qwq_code_types[f->codes];
    if (type->floats)
        return !f->group && !f->scales && !f->zero_point;
    int one_group = f->group > 0 && !(f->group & (f->group - 1)) && ((unsigned)f->group & type->groups);
    int most_zero_point = qwq_scale_kinds[f->scales].zero_point ? type->zero_point : 0;
    return one_group && type->scales >> f->scales & 1 && f->zero_point >= 0 && f->zero_point <= most_zero_point;
}

int qwq_layout_of(qwq_layout *l, const qwq_format *f)
{
    if (!exists(f))
        return 0;
    const qwq_code_type *type = &qwq_code_types[f->codes];
    const qwq_scales *kind = &qwq_scale_kinds[f->scales];
    memset(l, 0, sizeof *l);
    l->code_bytes = (size_t)type->bits * GROUP * PANEL / 8;
    l->columns = GROUP;
    l->bytes = l->code_bytes;
    l->subgroups = 1;
    l->floats = type->floats;
    if (type->floats)
        return 1;
    size_t group = (size_t)f->group;
    l->columns = kind->super ? SUPER : group > GROUP ? group : GROUP;
    l->subgroups = group >= GROUP ? 1 : GROUP / group;
    l->in_block = l->columns / group;
    l->group_bits = __builtin_ctzll(group);
    l->scales_at = l->columns / GROUP * l->code_bytes;
    l->bytes = up(l->scales_at + (kind->of_block + kind->of_group * l->in_block) * PANEL, LINE);
    l->offset = kind->offset;
    l->row_zeros = f->codes == QWQ_U8 && f->scales == QWQ_ZERO;
    int zero_excess = f->scales == QWQ_ZERO ? l->row_zeros ? 1 : ZERO_EXCESS : 0;
    l->excess = type->excess ? type->excess : zero_excess ? zero_excess : f->zero_point;
    l->most = type->most + (zero_excess == ZERO_EXCESS ? ZERO_EXCESS : 0);
    memcpy(l->planes, type->planes, sizeof l->planes);
    return 1;
}

int qwq_format_layout(void *layout, const qwq_format *format)
{
    return layout && format ? qwq_layout_of(layout, format) : 0;
}

size_t qwq_packed_bytes(const qwq_format *format, size_t N, size_t K)
{
    qwq_layout l;
    if (!format || !qwq_layout_of(&l, format) || !N || !K || N > QWQ_MOST_SIZE || K > QWQ_MOST_SIZE)
        return 0;
    return up(N, PANEL) / PANEL * (up(K, l.columns) / l.columns) * l.bytes;
}
