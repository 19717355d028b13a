/* AVX-512 with VNNI: a panel's 32 rows are two registers, a tile's tokens are broadcast from memory. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"
#include "target.h"

TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma")

static void largest(float *largest, const float *x, size_t groups)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    for (size_t g = 0; g < groups; g++, x += GROUP) {
        __m512i most = _mm512_setzero_si512(); /* as integers, magnitudes are in the order of floats, NaN last */
        for (int i = 0; i < 4; i++)
            most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_loadu_si512(x + 16 * i), magnitude));
        largest[g] = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(most))));
    }
}

static int32_t quantise(int8_t *q, const float *x, float inverse)
{
    __m512i total = _mm512_setzero_si512();
    for (int i = 0; i < 4; i++) {
        __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), _mm512_set1_ps(inverse)));
        total = _mm512_add_epi32(total, n);
        _mm_storeu_si128((__m128i *)(void *)(q + 16 * i), _mm512_cvtepi32_epi8(n));
    }
    return _mm512_reduce_add_epi32(total);
}

/* How many of the middles each value is above: four steps of bisection in a table of sixteen. */
static inline __m512i nearest(__m512 value, __m512 middles)
{
    __m512i n = _mm512_setzero_si512();
    for (int step = 8; step >= 1; step /= 2) {
        __m512 middle = _mm512_permutexvar_ps(_mm512_add_epi32(n, _mm512_set1_epi32(step - 1)), middles);
        n = _mm512_mask_add_epi32(n, _mm512_cmp_ps_mask(value, middle, _CMP_GT_OQ), n, _mm512_set1_epi32(step));
    }
    return n;
}

/* spec.quant.lane_sum: four registers of lanes, then halves. */
static inline float lane_sum(const __m512 *x)
{
    __m512 lanes = _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(x[0], x[1]), x[2]), x[3]);
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

static uint16_t quantise_q4(uint8_t *code, const float *w)
{
    const __m512 middles = _mm512_loadu_ps(QWQ_MIDDLES);
    const __m512 levels = _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)QWQ_CODEBOOK)));
    __m512 v[4], products[4], squares[4], magnitude = _mm512_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_loadu_ps(w + 16 * i);
        magnitude = _mm512_max_ps(magnitude, _mm512_abs_ps(v[i]));
    }
    float largest = _mm512_reduce_max_ps(magnitude), sign = 1;
    for (int i = 0; i < 4; i++) { /* the first of the largest gives the sign */
        __mmask16 at = _mm512_cmp_ps_mask(_mm512_abs_ps(v[i]), _mm512_set1_ps(largest), _CMP_EQ_OQ);
        if (at) {
            sign = w[16 * i + __builtin_ctz(at)] < 0 ? -1.0f : 1.0f;
            break;
        }
    }
    for (int i = 0; i < 4; i++)
        v[i] = _mm512_mul_ps(v[i], _mm512_set1_ps(sign));
    float best = __builtin_inff();
    uint16_t best_scale = 0;
    for (int start = 0; start < STARTS; start++) {
        float scale = largest * QWQ_STARTS[start] > QWQ_SMALLEST ? largest * QWQ_STARTS[start] : QWQ_SMALLEST;
        for (int round = 0; round < ROUNDS; round++) {
            __m512 inverse = _mm512_set1_ps(1.0f / scale);
            for (int i = 0; i < 4; i++) {
                __m512 level = _mm512_permutexvar_ps(nearest(_mm512_mul_ps(v[i], inverse), middles), levels);
                products[i] = _mm512_mul_ps(v[i], level);
                squares[i] = _mm512_mul_ps(level, level);
            }
            scale = lane_sum(products) / lane_sum(squares);
            scale = scale > QWQ_SMALLEST ? scale : QWQ_SMALLEST;
            scale = scale < QWQ_LARGEST ? scale : QWQ_LARGEST;
        }
        uint16_t half = largest > 0 ? float_to_half(scale) : 0;
        scale = half_to_float(half);
        __m512 inverse = _mm512_set1_ps(scale > 0 ? 1.0f / scale : 0);
        __m512i codes[4];
        for (int i = 0; i < 4; i++) {
            codes[i] = nearest(_mm512_mul_ps(v[i], inverse), middles);
            __m512 level = _mm512_permutexvar_ps(codes[i], levels);
            __m512 rest = _mm512_sub_ps(v[i], _mm512_mul_ps(_mm512_set1_ps(scale), level));
            squares[i] = _mm512_mul_ps(rest, rest);
        }
        float error = lane_sum(squares);
        if (start == 0 || error < best) {
            best = error;
            best_scale = half;
            for (int i = 0; i < 4; i++)
                _mm_storeu_si128((__m128i *)(void *)(code + 16 * i), _mm512_cvtepi32_epi8(codes[i]));
        }
    }
    return (uint16_t)(best_scale | (sign < 0 ? 0x8000u : 0));
}

static uint16_t quantise_q8(int8_t *q, const float *w)
{
    __m512 v[4], magnitude = _mm512_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_loadu_ps(w + 16 * i);
        magnitude = _mm512_max_ps(magnitude, _mm512_abs_ps(v[i]));
    }
    float scale = _mm512_reduce_max_ps(magnitude) * (1.0f / 127.0f);
    uint16_t half = float_to_half(scale < QWQ_LARGEST ? scale : QWQ_LARGEST);
    scale = half_to_float(half);
    __m512 inverse = _mm512_set1_ps(scale > 0 ? 1.0f / scale : 0);
    const __m512 most = _mm512_set1_ps(127), least = _mm512_set1_ps(-127);
    for (int i = 0; i < 4; i++) {
        __m512 cut = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(v[i], inverse), least), most);
        _mm_storeu_si128((__m128i *)(void *)(q + 16 * i), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(cut)));
    }
    return half;
}

static inline void q4_line(uint8_t *first, uint8_t *second, const uint8_t *line)
{
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i levels = _mm512_add_epi8(
        _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)QWQ_CODEBOOK)),
        _mm512_set1_epi8(Q4_EXCESS));
    __m512i codes = _mm512_loadu_si512(line);
    _mm512_storeu_si512(first, _mm512_shuffle_epi8(levels, _mm512_and_si512(codes, low)));
    _mm512_storeu_si512(second, _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16(codes, 4), low)));
}

static inline __m512 sixteen_halves(const uint8_t *from)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

static inline void halves(float *to, const uint8_t *from)
{
    _mm512_storeu_ps(to, sixteen_halves(from));
    _mm512_storeu_ps(to + 16, sixteen_halves(from + 32));
}

static inline void bytes_times(float *to, const uint8_t *bytes, const float *d)
{
    for (int r = 0; r < PANEL; r += 16) {
        __m512i sixteen = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(bytes + r)));
        _mm512_storeu_ps(to + r, _mm512_mul_ps(_mm512_loadu_ps(d + r), _mm512_cvtepi32_ps(sixteen)));
    }
}

static inline void signed_bytes_times(float *to, const uint8_t *bytes, const float *d)
{
    for (int r = 0; r < PANEL; r += 16) {
        __m512i sixteen = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(bytes + r)));
        _mm512_storeu_ps(to + r, _mm512_mul_ps(_mm512_loadu_ps(d + r), _mm512_cvtepi32_ps(sixteen)));
    }
}

#include "unpack.h"

/* GCC 12 would load the broadcast first, and run out of registers: the operand stays in memory. */
#define DOT(sum, levels, four) \
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(levels), "m"(*(const int32_t *)(const void *)(four)))

#define EACH_TOKEN(TOKENS) _Pragma("GCC unroll 8") for (size_t t = 0; t < TOKENS; t++)

/* A tile's results are registers while its groups are added. */
#define READ_RESULTS(TOKENS)                                                                                          \
    __m512 y0[TOKENS], y1[TOKENS];                                                                                    \
    EACH_TOKEN(TOKENS)                                                                                                \
    {                                                                                                                 \
        y0[t] = _mm512_loadu_ps(y + t * PANEL);                                                                       \
        y1[t] = _mm512_loadu_ps(y + t * PANEL + 16);                                                                  \
    }
#define WRITE_RESULTS(TOKENS)                                                                                         \
    EACH_TOKEN(TOKENS)                                                                                                \
    {                                                                                                                 \
        _mm512_storeu_ps(y + t * PANEL, y0[t]);                                                                       \
        _mm512_storeu_ps(y + t * PANEL + 16, y1[t]);                                                                  \
    }

/* Both halves of a line times four columns of each token. */
#define DOTS(TOKENS, first, second, q)                                                                                \
    EACH_TOKEN(TOKENS)                                                                                                \
    {                                                                                                                 \
        DOT(s0[t], first, (q) + t * 4);                                                                               \
        DOT(s1[t], second, (q) + t * 4);                                                                              \
    }

static void scale(qwq_wide *w, uint64_t used)
{
    const __m512 w0 = _mm512_loadu_ps(w->scale[0]), w1 = _mm512_loadu_ps(w->scale[0] + 16);
    for (; used; used &= used - 1) {
        int i = __builtin_ctzll(used);
        const __m512 x = _mm512_set1_ps(QWQ_RATIO[i]);
        _mm512_storeu_ps(w->scaled[i], _mm512_mul_ps(x, w0));
        _mm512_storeu_ps(w->scaled[i] + 16, _mm512_mul_ps(x, w1));
    }
}

/* y += sum * (scale of x * scale of w), in registers. */
#define SCALED(y, sum, x, w) y = _mm512_add_ps(y, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(x, w)))

/* TOKENS and one panel from memory that stays in the cache, EACH lines to a subgroup. Unrolled: 2 x TOKENS sums and as
 * many results are registers. */
#define WIDE_TILE(TOKENS, EACH)                                                                                       \
    static void wide_##TOKENS##_##EACH(float *y, const qwq_wide *w, const qwq_tile *tile, size_t groups, int offset)  \
    {                                                                                                                 \
        const int8_t *q = tile->q;                                                                                    \
        const float *ratio = tile->ratio, *total = tile->sum;                                                         \
        const uint16_t *scaled = tile->scaled;                                                                        \
        const int32_t *begin = tile->begin;                                                                           \
        READ_RESULTS(TOKENS)                                                                                          \
        for (size_t g = 0; g < groups; g++, w++, ratio += TOKENS, scaled += TOKENS)                                   \
            for (size_t s = 0; s < LINES / EACH; s++, begin += TOKENS) {                                              \
                __m512i s0[TOKENS], s1[TOKENS];                                                                       \
                EACH_TOKEN(TOKENS) s0[t] = s1[t] = _mm512_set1_epi32(begin[t]);                                       \
                const uint8_t *code = w->code[s * EACH][0];                                                           \
                _Pragma("GCC unroll 16") for (size_t l = 0; l < EACH; l++) {                                          \
                    __m512i first = _mm512_loadu_si512(code + 2 * l * LINE);                                          \
                    __m512i second = _mm512_loadu_si512(code + (2 * l + 1) * LINE);                                   \
                    DOTS(TOKENS, first, second, q + l * TOKENS * 4)                                                   \
                }                                                                                                     \
                q += EACH * TOKENS * 4;                                                                               \
                const __m512 w0 = _mm512_loadu_ps(w->scale[s]), w1 = _mm512_loadu_ps(w->scale[s] + 16);               \
                EACH_TOKEN(TOKENS)                                                                                    \
                if (EACH == LINES) { /* the product of both scales is read: one multiplication less is 4 % */         \
                    const float *both = (const float *)(const void *)((const char *)w->scaled + scaled[t]);           \
                    y0[t] = _mm512_add_ps(y0[t], _mm512_mul_ps(_mm512_cvtepi32_ps(s0[t]), _mm512_loadu_ps(both)));    \
                    y1[t] = _mm512_add_ps(y1[t], _mm512_mul_ps(_mm512_cvtepi32_ps(s1[t]), _mm512_loadu_ps(both + 16)));\
                } else {                                                                                              \
                    __m512 x = _mm512_set1_ps(ratio[t]);                                                              \
                    SCALED(y0[t], s0[t], x, w0);                                                                      \
                    SCALED(y1[t], s1[t], x, w1);                                                                      \
                }                                                                                                     \
                if (offset) {                                                                                         \
                    const __m512 o0 = _mm512_loadu_ps(w->offset[s]), o1 = _mm512_loadu_ps(w->offset[s] + 16);         \
                    EACH_TOKEN(TOKENS)                                                                                \
                    {                                                                                                 \
                        __m512 x = _mm512_set1_ps(total[t]);                                                          \
                        y0[t] = _mm512_add_ps(y0[t], _mm512_mul_ps(o0, x));                                           \
                        y1[t] = _mm512_add_ps(y1[t], _mm512_mul_ps(o1, x));                                           \
                    }                                                                                                 \
                    total += TOKENS;                                                                                  \
                }                                                                                                     \
            }                                                                                                         \
        WRITE_RESULTS(TOKENS)                                                                                         \
    }

/* Straight from blocks of a format with one scale a group: NAME##_LINE reads rows 0-15 and 16-31 of line l. */
#define BLOCKS_TILE(NAME, name, TOKENS)                                                                               \
    static void name##_##TOKENS(float *y, const uint8_t *w, const qwq_tile *tile, size_t groups,                      \
                                const qwq_format *format, const qwq_layout *layout)                                   \
    {                                                                                                                 \
        (void)format, (void)layout;                                                                                   \
        NAME##_BEGIN                                                                                                  \
        const int8_t *q = tile->q;                                                                                    \
        READ_RESULTS(TOKENS)                                                                                          \
        for (size_t g = 0; g < groups; g++, w += NAME##_BLOCK, q += GROUP * TOKENS) {                                 \
            __m512i s0[TOKENS], s1[TOKENS];                                                                           \
            EACH_TOKEN(TOKENS) s0[t] = s1[t] = _mm512_set1_epi32(tile->begin[g * TOKENS + t]);                        \
            _Pragma("GCC unroll 4") for (size_t l = 0; l < LINES; l++) {                                              \
                NAME##_AHEAD(TOKENS, w, l)                                                                            \
                NAME##_LINE(w, l)                                                                                     \
                DOTS(TOKENS, first, second, q + l * TOKENS * 4)                                                       \
            }                                                                                                         \
            const __m512 w0 = sixteen_halves(w + NAME##_BLOCK - 2 * PANEL);                                           \
            const __m512 w1 = sixteen_halves(w + NAME##_BLOCK - PANEL);                                               \
            EACH_TOKEN(TOKENS)                                                                                        \
            {                                                                                                         \
                __m512 x = _mm512_set1_ps(tile->ratio[g * TOKENS + t]);                                               \
                SCALED(y0[t], s0[t], x, w0);                                                                          \
                SCALED(y1[t], s1[t], x, w1);                                                                          \
            }                                                                                                         \
        }                                                                                                             \
        WRITE_RESULTS(TOKENS)                                                                                         \
    }

/* q4: a line holds both halves of the panel as nibbles, which look up their levels. */
#define Q4_BEGIN                                                                                                      \
    const __m512i low = _mm512_set1_epi8(15);                                                                         \
    const __m512i levels = _mm512_add_epi8(                                                                           \
        _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)QWQ_CODEBOOK)),                         \
        _mm512_set1_epi8(Q4_EXCESS));
#define Q4_LINE(w, l)                                                                                                 \
    __m512i codes = _mm512_loadu_si512(w + l * LINE);                                                                 \
    __m512i first = _mm512_shuffle_epi8(levels, _mm512_and_si512(codes, low));                                        \
    __m512i second = _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16(codes, 4), low));

enum { PAGE = 4096 };

/* The processor's own fetching ends with a page: the first two lines of the next start it there in time. */
static inline __attribute__((always_inline)) void start_next_page(const uint8_t *w)
{
    const char *page = (const char *)(((uintptr_t)w / PAGE + 1) * PAGE);
    _mm_prefetch(page, _MM_HINT_T1);
    _mm_prefetch(page + LINE, _MM_HINT_T1);
}

/* Fetching each line helps where there is work to hide it behind: one or two tokens are slower with it, and so is q8. */
#define Q4_AHEAD(TOKENS, w, l)                                                                                        \
    if (TOKENS > 2)                                                                                                   \
        _mm_prefetch((const char *)w + l * LINE + 4 * Q4_BLOCK, _MM_HINT_T0);                                         \
    else if (l == 0)                                                                                                  \
        start_next_page(w);

/* q8: a line for each half, of bytes as they are multiplied. */
#define Q8_BEGIN
#define Q8_AHEAD(TOKENS, w, l)                                                                                        \
    if (l == 0)                                                                                                       \
        start_next_page(w);
#define Q8_LINE(w, l)                                                                                                 \
    __m512i first = _mm512_loadu_si512(w + 2 * l * LINE);                                                             \
    __m512i second = _mm512_loadu_si512(w + (2 * l + 1) * LINE);

/* Straight from blocks of any other format, with scales as unpack.h finds them: four lines at a time, of which
 * NAME##_LINE reads the i-th. What a format's bytes have too little is added, 0 where there are no zeros. */
#define ANY_TILE(NAME, name, TOKENS)                                                                                  \
    static void name##_##TOKENS(float *y, const uint8_t *w, const qwq_tile *tile, size_t groups,                      \
                                const qwq_format *format, const qwq_layout *layout)                                   \
    {                                                                                                                 \
        const __m512i low = _mm512_set1_epi8(15);                                                                     \
        const int8_t *q = tile->q;                                                                                    \
        const float *ratio = tile->ratio, *total = tile->sum;                                                         \
        const int32_t *begin = tile->begin;                                                                           \
        size_t per_block = layout->columns / GROUP, part = 0, each = LINES / layout->subgroups / 4;                   \
        zeros less = {{0}};                                                                                           \
        READ_RESULTS(TOKENS)                                                                                          \
        for (size_t g = 0; g < groups; g++, ratio += TOKENS) {                                                        \
            const uint8_t *lines = w + part * layout->codes, *plane = lines + NIBBLES;                                \
            for (size_t s = 0; s < layout->subgroups; s++, begin += TOKENS, total += TOKENS) {                        \
                float scale[PANEL], offset[PANEL] = {0};                                                              \
                unpack_scales(scale, offset, &less, w, part, s, format, layout);                                      \
                const __m512i less0 = _mm512_loadu_si512(less.rows), less1 = _mm512_loadu_si512(less.rows + 16);      \
                __m512i s0[TOKENS], s1[TOKENS];                                                                       \
                EACH_TOKEN(TOKENS) s0[t] = s1[t] = _mm512_set1_epi32(begin[t]);                                       \
                for (size_t l = 0; l < each; l++, lines += 4 * LINE, plane += NAME##_PLANE, q += 16 * TOKENS) {       \
                    ANY_LINE(NAME, TOKENS, 0)                                                                         \
                    ANY_LINE(NAME, TOKENS, 1)                                                                         \
                    ANY_LINE(NAME, TOKENS, 2)                                                                         \
                    ANY_LINE(NAME, TOKENS, 3)                                                                         \
                }                                                                                                     \
                const __m512 w0 = _mm512_loadu_ps(scale), w1 = _mm512_loadu_ps(scale + 16);                           \
                EACH_TOKEN(TOKENS)                                                                                    \
                {                                                                                                     \
                    __m512 x = _mm512_set1_ps(ratio[t]);                                                              \
                    SCALED(y0[t], s0[t], x, w0);                                                                      \
                    SCALED(y1[t], s1[t], x, w1);                                                                      \
                    if (layout->offset) {                                                                             \
                        x = _mm512_set1_ps(total[t]);                                                                 \
                        y0[t] = _mm512_add_ps(y0[t], _mm512_mul_ps(_mm512_loadu_ps(offset), x));                      \
                        y1[t] = _mm512_add_ps(y1[t], _mm512_mul_ps(_mm512_loadu_ps(offset + 16), x));                 \
                    }                                                                                                 \
                }                                                                                                     \
            }                                                                                                         \
            if (++part == per_block) {                                                                                \
                part = 0;                                                                                             \
                w += layout->bytes;                                                                                   \
            }                                                                                                         \
        }                                                                                                             \
        WRITE_RESULTS(TOKENS)                                                                                         \
    }
#define ANY_LINE(NAME, TOKENS, i)                                                                                     \
    {                                                                                                                 \
        const __m512i codes = _mm512_loadu_si512(lines + i * LINE);                                                   \
        __m512i first = _mm512_and_si512(codes, low), second = _mm512_and_si512(_mm512_srli_epi16(codes, 4), low);    \
        NAME##_UPPER(i)                                                                                               \
        first = _mm512_add_epi8(first, less0);                                                                        \
        second = _mm512_add_epi8(second, less1);                                                                      \
        DOTS(TOKENS, first, second, q + i * TOKENS * 4)                                                               \
    }

/* Bits `from` to `from` + n - 1 of every byte, at bit 4. */
#define AT_FOUR(bytes, from, n)                                                                                       \
    (from < 4 ? _mm512_slli_epi16(BITS(bytes, from, n), (unsigned)(from < 4 ? 4 - from : 0))                          \
              : _mm512_srli_epi16(BITS(bytes, from, n), (unsigned)(from < 4 ? 0 : from - 4)))
#define BITS(bytes, from, n) _mm512_and_si512(bytes, _mm512_set1_epi8((char)(((1 << n) - 1) << from)))

enum { U4_PLANE = 0, U5_PLANE = LINE, U6_PLANE = 2 * LINE }; /* of four lines */
#define U4_UPPER(i)
#define U5_UPPER(i)                                                                                                   \
    const __m512i bits = _mm512_loadu_si512(plane);                                                                   \
    first = _mm512_or_si512(first, AT_FOUR(bits, 2 * i, 1));                                                          \
    second = _mm512_or_si512(second, AT_FOUR(bits, (2 * i + 1), 1));
#define U6_UPPER(i)                                                                                                   \
    const __m512i bits = _mm512_loadu_si512(plane + i / 2 * LINE);                                                    \
    first = _mm512_or_si512(first, AT_FOUR(bits, (i % 2 * 4), 2));                                                    \
    second = _mm512_or_si512(second, AT_FOUR(bits, (i % 2 * 4 + 2), 2));

/* w * x. A broadcast of its own takes an arithmetic unit, and a third of the speed: here, too, it stays an operand. */
static inline __m512 times(__m512 w, const float *x)
{
    __m512 product;
    __asm__("vmulps %2%{1to16%}, %1, %0" : "=v"(product) : "v"(w), "m"(*x));
    return product;
}

/* Floats: a column of a panel is two registers. A group's products are summed first, then added to y. */
#define FLOATS_TILE(NAME, name, TOKENS)                                                                               \
    static void name##_##TOKENS(float *y, const uint8_t *w, const qwq_tile *tile, size_t groups,                      \
                                const qwq_format *format, const qwq_layout *layout)                                   \
    {                                                                                                                 \
        (void)format, (void)layout;                                                                                   \
        const float *x = tile->x;                                                                                     \
        for (size_t g = 0; g < groups; g++) {                                                                         \
            __m512 s0[TOKENS], s1[TOKENS];                                                                            \
            EACH_TOKEN(TOKENS) s0[t] = s1[t] = _mm512_setzero_ps();                                                   \
            _Pragma("GCC unroll 4") for (size_t k = 0; k < GROUP; k++, x += TOKENS, w += NAME##_COLUMN) {             \
                const __m512 w0 = NAME##_HALF(w), w1 = NAME##_HALF(w + NAME##_COLUMN / 2);                            \
                EACH_TOKEN(TOKENS)                                                                                    \
                {                                                                                                     \
                    s0[t] = _mm512_add_ps(s0[t], times(w0, x + t));                                                   \
                    s1[t] = _mm512_add_ps(s1[t], times(w1, x + t));                                                   \
                }                                                                                                     \
            }                                                                                                         \
            EACH_TOKEN(TOKENS)                                                                                        \
            {                                                                                                         \
                float *to = y + t * PANEL;                                                                            \
                _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), s0[t]));                                      \
                _mm512_storeu_ps(to + 16, _mm512_add_ps(_mm512_loadu_ps(to + 16), s1[t]));                            \
            }                                                                                                         \
        }                                                                                                             \
    }

enum { FP32_COLUMN = PANEL * 4, BF16_COLUMN = PANEL * 2, FP16_COLUMN = PANEL * 2 };
#define FP32_HALF(w) _mm512_loadu_ps(w)
#define FP16_HALF(w) sixteen_halves(w)
#define BF16_HALF(w) \
    _mm512_castsi512_ps(_mm512_slli_epi32( \
        _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(w))), 16))

#define BLOCKS(KIND, NAME, name)                                                                                      \
    KIND##_TILE(NAME, name, 1) KIND##_TILE(NAME, name, 2) KIND##_TILE(NAME, name, 3)                                  \
    KIND##_TILE(NAME, name, 4) KIND##_TILE(NAME, name, 5) KIND##_TILE(NAME, name, 6)                                  \
    static void name(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups,             \
                     const qwq_format *format, const qwq_layout *layout)                                              \
    {                                                                                                                 \
        static void (*const tiles[TILE])(float *, const uint8_t *, const qwq_tile *, size_t, const qwq_format *,      \
                                         const qwq_layout *) = {name##_1, name##_2, name##_3,                         \
                                                                name##_4, name##_5, name##_6};                        \
        tiles[tokens - 1](y, blocks, tile, groups, format, layout);                                                   \
    }

BLOCKS(ANY, U4, u4)
BLOCKS(ANY, U5, u5)
BLOCKS(ANY, U6, u6)
BLOCKS(BLOCKS, Q4, q4)
BLOCKS(BLOCKS, Q8, q8)
BLOCKS(FLOATS, BF16, bf16)
BLOCKS(FLOATS, FP16, fp16)
BLOCKS(FLOATS, FP32, fp32)

#define WIDE_TILES(EACH)                                                                                              \
    WIDE_TILE(1, EACH) WIDE_TILE(2, EACH) WIDE_TILE(3, EACH) WIDE_TILE(4, EACH) WIDE_TILE(5, EACH) WIDE_TILE(6, EACH)

WIDE_TILES(16)
WIDE_TILES(8)
WIDE_TILES(4)

static void wide(float *y, const qwq_wide *w, const qwq_tile *tile, size_t tokens, size_t groups,
                 const qwq_layout *layout)
{
    static void (*const tiles[3][TILE])(float *, const qwq_wide *, const qwq_tile *, size_t, int) = {
        {wide_1_16, wide_2_16, wide_3_16, wide_4_16, wide_5_16, wide_6_16},
        {wide_1_8, wide_2_8, wide_3_8, wide_4_8, wide_5_8, wide_6_8},
        {wide_1_4, wide_2_4, wide_3_4, wide_4_4, wide_5_4, wide_6_4}};
    tiles[layout->subgroups / 2][tokens - 1](y, w, tile, groups, layout->offset);
}

const qwq_kernels qwq_avx512_kernels = {largest, quantise, quantise_q4, quantise_q8, unpack, widen, scale, wide,
                                        {q4, u4, u5, u6, q8, bf16, fp16, fp32}, QWQ_AVX512};

TARGET_END

#else
typedef int qwq_no_avx512; /* a file must hold something */
#endif
