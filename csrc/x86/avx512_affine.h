/* Products straight from blocks of u4, u5, u6, u8 and q8, with scales of any kind. avx512_matmul.c includes this.
 *
 * Of each block, first the integers: the sums of all its subgroups, which stay in the first cache. Then the scales,
 * which lie behind the codes and take these sums to floats. So memory is read in ascending order, as the processor's
 * own fetching needs it, and a kind of scales costs one branch a block. */

enum {
    GROUP_BITS = 6,
    MOST_SUMS = 16, /* of a block and a token: groups of 16 in 256 columns */
    TWICE = 2       /* tokens at most for which nibbles are multiplied first, then the plane behind them */
};

/* How many bits of a code lie in a plane behind the nibbles; or that codes are bytes. */
enum { NO_PLANE = 0, ONE_BIT = 1, TWO_BITS = 2, BYTES = 4 };

/* Rows 16 to 31 lie in the upper bits of a byte. They stay there, or near, and so their sums are 2^shift times as
 * large. */
INLINE unsigned shift_of(const int upper)
{
    return upper == NO_PLANE ? 4 : upper == BYTES ? 0 : (unsigned)upper;
}

/* Sets of four lines in a subgroup. */
INLINE size_t fours_of(const qwq_layout *layout)
{
    return layout->group_bits < GROUP_BITS ? (size_t)1 << (layout->group_bits - 4) : LINES / 4;
}

/* A line. GCC would read it for each instruction that can read memory, and a line a cycle is all that can be read. */
INLINE __m512i line_at(const uint8_t *from)
{
    __m512i line;
    __asm__("vmovdqu64 %1, %0" : "=v"(line) : "m"(*(const line_of_bytes *)(const void *)from));
    return line;
}

/* Reads some lines for the processor's own fetching, which does not follow nibbles and a plane side by side. One
 * instruction for all of them, so that it sees their distance; prefetching instead helps less. */
INLINE void touch(const uint8_t *from, const int lines)
{
    UNROLL_BY(1) for (int i = 0; i < lines; i++) {
        uint64_t x;
        __asm__ volatile("mov %1, %0"
                         : "=r"(x)
                         : "m"(*(const uint64_t *)(const void *)(from + i * LINE))
                         : "memory");
    }
}

INLINE __m512i bytes_of(const int byte)
{
    return _mm512_set1_epi8((char)byte);
}

/* a & b | c */
INLINE __m512i and_or(__m512i a, __m512i b, __m512i c)
{
    return _mm512_ternarylogic_epi64(a, b, c, 0xEA);
}

/* The plane's bits for line i of four: of rows 0-15 at bit 4, of rows 16-31 beside them. Other bits may be anything. */
INLINE __m512i upper_bits(__m512i bits, const int upper, const int i)
{
    const int from = i * 2 * upper % 8;
    const uint8_t up = (uint8_t)(from < 4 ? 4 - from : 0), down = (uint8_t)(from > 4 ? from - 4 : 0);
    return from == 4 ? bits : from < 4 ? _mm512_slli_epi16(bits, up) : _mm512_srli_epi16(bits, down);
}

/* Line i of four times four columns of x. */
INLINE void affine_line(sums *sum, const uint8_t *lines, __m512i bits, const int8_t *q, const int upper, const int i,
                        const int T)
{
    q += i * T * 4;
    if (upper == BYTES) {
        dots(sum, line_at(lines + 2 * i * LINE), line_at(lines + (2 * i + 1) * LINE), q, T);
        return;
    }
    const __m512i codes = line_at(lines + i * LINE), low = bytes_of(15);
    if (upper == NO_PLANE) {
        dots(sum, _mm512_and_si512(codes, low), _mm512_andnot_si512(low, codes), q, T);
        return;
    }
    const int mask = (1 << upper) - 1;
    bits = upper_bits(bits, upper, i);
    const __m512i first = _mm512_and_si512(bits, bytes_of(mask << 4));
    const __m512i second = _mm512_and_si512(bits, bytes_of(mask << (4 + upper)));
    const __m512i upper_codes = _mm512_srli_epi16(codes, (uint8_t)(4 - upper));
    dots(sum, and_or(codes, low, first), and_or(upper_codes, bytes_of(15 << upper), second), q, T);
}

/* The sums of a group's subgroups, to [subgroup][half][token], from what they begin with. */
INLINE void group_sums(__m512i *to, const uint8_t *lines, const uint8_t *plane, const int8_t *q, const int32_t *begin,
                       const qwq_layout *layout, const int upper, const int T)
{
    const size_t fours = fours_of(layout);
    for (size_t s = 0; s < layout->subgroups; s++, to += 2 * T, begin += T) {
        sums sum;
        UNROLL for (int t = 0; t < T; t++) {
            sum.s0[t] = _mm512_set1_epi32(begin[t]);
            sum.s1[t] = _mm512_slli_epi32(sum.s0[t], shift_of(upper));
        }
        for (size_t l = 0; l < fours; l++, plane += upper * LINE, q += 16 * T) {
            const int planes = upper == ONE_BIT || upper == TWO_BITS;
            const __m512i bits = planes ? line_at(plane) : _mm512_setzero_si512();
            const __m512i more = upper == TWO_BITS ? line_at(plane + LINE) : bits;
            affine_line(&sum, lines, bits, q, upper, 0, T);
            affine_line(&sum, lines, bits, q, upper, 1, T);
            affine_line(&sum, lines, more, q, upper, 2, T);
            affine_line(&sum, lines, more, q, upper, 3, T);
            lines += (upper == BYTES ? 8 : 4) * LINE;
        }
        UNROLL for (int t = 0; t < T; t++) {
            _mm512_store_si512(to + t, sum.s0[t]);
            _mm512_store_si512(to + T + t, _mm512_srai_epi32(sum.s1[t], shift_of(upper)));
        }
    }
}

/* Line i of four of a plane. */
INLINE void plane_line(sums *sum, __m512i bits, const int8_t *q, const int upper, const int i, const int T)
{
    const int mask = (1 << upper) - 1;
    bits = upper_bits(bits, upper, i);
    dots(sum, _mm512_and_si512(bits, bytes_of(mask << 4)), _mm512_and_si512(bits, bytes_of(mask << (4 + upper))),
         q + i * T * 4, T);
}

/* Adds what the plane makes to the sums of nibbles. */
INLINE void plane_sums(__m512i *to, const uint8_t *plane, const int8_t *q, const qwq_layout *layout, const int upper,
                       const int T)
{
    const size_t fours = fours_of(layout);
    for (size_t s = 0; s < layout->subgroups; s++, to += 2 * T) {
        sums sum;
        UNROLL for (int t = 0; t < T; t++) {
            sum.s0[t] = _mm512_load_si512(to + t);
            sum.s1[t] = _mm512_setzero_si512();
        }
        for (size_t l = 0; l < fours; l++, plane += upper * LINE, q += 16 * T) {
            const __m512i bits = line_at(plane), more = upper == TWO_BITS ? line_at(plane + LINE) : bits;
            plane_line(&sum, bits, q, upper, 0, T);
            plane_line(&sum, bits, q, upper, 1, T);
            plane_line(&sum, more, q, upper, 2, T);
            plane_line(&sum, more, q, upper, 3, T);
        }
        UNROLL for (int t = 0; t < T; t++) {
            __m512i second = _mm512_srai_epi32(sum.s1[t], shift_of(upper));
            _mm512_store_si512(to + t, sum.s0[t]);
            _mm512_store_si512(to + T + t, _mm512_add_epi32(_mm512_load_si512(to + T + t), second));
        }
    }
}

/* The sums of a block. One or two tokens wait for memory: two products a code cost less there than another order of
 * reading. */
INLINE void block_sums(__m512i *to, const uint8_t *block, const int8_t *q, const int32_t *begin,
                       const qwq_layout *layout, const int upper, const int T)
{
    const int planes = upper == ONE_BIT || upper == TWO_BITS;
    for (size_t c = 0; c < layout->columns; c += GROUP, block += layout->code_bytes, q += GROUP * T) {
        start_next_page(block);
        if (planes && T <= TWICE) {
            group_sums(to, block, NULL, q, begin, layout, NO_PLANE, T);
            plane_sums(to, block + NIBBLES, q, layout, upper, T);
        } else {
            if (planes)
                touch(block, LINES + 4 * upper);
            group_sums(to, block, block + NIBBLES, q, begin, layout, upper, T);
        }
        to += 2 * layout->subgroups * (size_t)T;
        begin += layout->subgroups * (size_t)T;
    }
}

INLINE __m512i sixteen_bytes(const uint8_t *from)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)from));
}

INLINE __m512i sixteen_signed(const uint8_t *from)
{
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)from));
}

INLINE __m512 sixteen_bf16(const uint8_t *from)
{
    __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

/* The numbers of 16 rows from row r on of one kind of scales, which is constant. */
typedef struct {
    __m512 d, minus_dmin; /* of a block */
    __m512 scale, offset; /* of group i */
    __m512i zero;
} sixteen_scales;

INLINE void read_block_scales(sixteen_scales *w, const uint8_t *scales, size_t r, const int kind)
{
    if (kind == QWQ_SUPER || kind == QWQ_SUPER_MIN)
        w->d = sixteen_halves(scales + 2 * r);
    if (kind == QWQ_SUPER_MIN)
        w->minus_dmin = _mm512_xor_ps(sixteen_halves(scales + 2 * (PANEL + r)), _mm512_set1_ps(-0.0f));
}

/* in_block: groups of a block. */
INLINE void read_scales(sixteen_scales *w, const uint8_t *scales, size_t i, size_t in_block, size_t r, const int kind)
{
    const size_t at = PANEL * i + r, n = PANEL * in_block;
    switch (kind) {
    case QWQ_SUPER: w->scale = _mm512_mul_ps(w->d, _mm512_cvtepi32_ps(sixteen_signed(scales + 2 * PANEL + at))); break;
    case QWQ_SUPER_MIN:
        w->scale = _mm512_mul_ps(w->d, _mm512_cvtepi32_ps(sixteen_bytes(scales + 4 * PANEL + at)));
        w->offset = _mm512_mul_ps(w->minus_dmin, _mm512_cvtepi32_ps(sixteen_bytes(scales + 4 * PANEL + n + at)));
        break;
    case QWQ_OFFSET_BF16:
        w->scale = sixteen_bf16(scales + 2 * at);
        w->offset = sixteen_bf16(scales + 2 * (n + at));
        break;
    case QWQ_OFFSET: w->offset = sixteen_halves(scales + 2 * (n + at)); /* fall through */
    default: w->scale = sixteen_halves(scales + 2 * at);
    }
    if (kind == QWQ_ZERO)
        w->zero = sixteen_bytes(scales + 2 * n + at);
}

/* y += a block's sums, scaled. */
INLINE void scale_block_of(float *y, const __m512i *sum, const uint8_t *scales, const qwq_tile *tile,
                           const qwq_layout *layout, const int kind, const int T)
{
    const size_t count = layout->columns / GROUP * layout->subgroups, half = PANEL / 2;
    const int bits = layout->group_bits, wider = bits > GROUP_BITS ? bits - GROUP_BITS : 0;
    const int narrower = bits < GROUP_BITS ? GROUP_BITS - bits : 0;
    const unsigned zeros = layout->row_zeros ? 0 : 4; /* sums would begin with -1 or -16 times the sum of x */
    const int32_t *begin = tile->begin;
    const float *total = tile->sum;
    __m512 to[2][MOST_TILE];
    sixteen_scales w[2];
    UNROLL for (int h = 0; h < 2; h++) {
        read_block_scales(&w[h], scales, half * (size_t)h, kind);
        UNROLL for (int t = 0; t < T; t++)
            to[h][t] = _mm512_loadu_ps(y + t * PANEL + half * (size_t)h);
    }
    for (size_t i = 0; i < count; i++, sum += 2 * T, begin += T, total += T) {
        const float *ratio = tile->ratio + (i >> narrower) * (size_t)T;
        UNROLL for (int h = 0; h < 2; h++) {
            read_scales(&w[h], scales, i >> wider, layout->in_block, half * (size_t)h, kind);
            UNROLL for (int t = 0; t < T; t++) {
                __m512i exact = _mm512_load_si512(sum + h * T + t);
                if (kind == QWQ_ZERO) {
                    const __m512i of_x = _mm512_set1_epi32(begin[t] >> zeros);
                    exact = _mm512_add_epi32(exact, _mm512_mullo_epi32(w[h].zero, of_x));
                }
                add_product(&to[h][t], exact, _mm512_mul_ps(_mm512_set1_ps(ratio[t]), w[h].scale));
                if (kind == QWQ_SUPER_MIN || kind == QWQ_OFFSET || kind == QWQ_OFFSET_BF16)
                    to[h][t] = _mm512_add_ps(to[h][t], _mm512_mul_ps(w[h].offset, _mm512_set1_ps(total[t])));
            }
        }
    }
    UNROLL for (int h = 0; h < 2; h++)
        UNROLL for (int t = 0; t < T; t++)
            _mm512_storeu_ps(y + t * PANEL + half * (size_t)h, to[h][t]);
}

/* A function for each kind of scales and number of tokens, for all types of codes. */
typedef void scale_block_fn(float *y, const __m512i *sum, const uint8_t *scales, const qwq_tile *tile,
                            const qwq_layout *layout);
#define SCALE_OF(KIND, T)                                                                                              \
    static void scale_##KIND##_##T(float *y, const __m512i *sum, const uint8_t *scales, const qwq_tile *tile,          \
                                   const qwq_layout *layout)                                                           \
    {                                                                                                                  \
        scale_block_of(y, sum, scales, tile, layout, QWQ_##KIND, T);                                                   \
    }
#define SCALE(KIND)                                                                                                    \
    SCALE_OF(KIND, 1) SCALE_OF(KIND, 2) SCALE_OF(KIND, 3) SCALE_OF(KIND, 4) SCALE_OF(KIND, 5) SCALE_OF(KIND, 6)
SCALE(PLAIN)
SCALE(ZERO)
SCALE(OFFSET)
SCALE(OFFSET_BF16)
SCALE(SUPER)
SCALE(SUPER_MIN)
#define SCALES_OF(KIND)                                                                                                \
    [QWQ_##KIND] = {scale_##KIND##_1, scale_##KIND##_2, scale_##KIND##_3,                                              \
                    scale_##KIND##_4, scale_##KIND##_5, scale_##KIND##_6}
static scale_block_fn *const scale_block[QWQ_SCALE_KINDS][MOST_TILE] = {
    SCALES_OF(PLAIN),       SCALES_OF(ZERO),  SCALES_OF(OFFSET),
    SCALES_OF(OFFSET_BF16), SCALES_OF(SUPER), SCALES_OF(SUPER_MIN)};

INLINE void affine_tile(float *y, const uint8_t *w, const qwq_tile *tile, size_t groups, const qwq_format *format,
                        const qwq_layout *layout, const int upper, const int T)
{
    static const int32_t none[MOST_SUMS * MOST_TILE]; /* zero points of rows are taken off with the scales */
    __m512i sum[2 * MOST_SUMS * MOST_TILE];
    const size_t per_block = layout->columns / GROUP, tokens = (size_t)T;
    qwq_tile at = *tile;
    for (; groups; groups -= per_block, w += layout->bytes) {
        block_sums(sum, w, at.q, format->scales == QWQ_ZERO ? none : at.begin, layout, upper, T);
        scale_block[format->scales][T - 1](y, sum, w + layout->scales_at, &at, layout);
        at.q += per_block * GROUP * tokens;
        at.ratio += per_block * tokens;
        at.begin += per_block * layout->subgroups * tokens;
        at.sum += per_block * layout->subgroups * tokens;
    }
}
