/* Attention over a cache of floats. avx512_attention.c includes this. */

/* numerics.quant.lane_sum of 16 registers at once: sums of halves, side by side. */
INLINE __m512 sixteen_lane_sums(const __m512 *s)
{
    __m512 four[4];
    UNROLL for (int i = 0; i < 4; i++) {
        __m512 x = s[i], y = s[i + 4], z = s[i + 8], w = s[i + 12];
        __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xEE));
        __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(z, w, 0x44), _mm512_shuffle_f32x4(z, w, 0xEE));
        four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
    }
    __m512 two[2];
    UNROLL for (int i = 0; i < 2; i++) {
        __m512d a = _mm512_castps_pd(four[2 * i]), b = _mm512_castps_pd(four[2 * i + 1]);
        two[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    return _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xDD));
}

static void scores_fp32(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    size_t E = rows->E;
    for (size_t b = first * SPAN / BLOCK; b < last * SPAN / BLOCK; b++)
        for (size_t r = 0; r < rows->rows; r++)
            for (size_t t = b * BLOCK; t < (b + 1) * BLOCK; t += 16) {
                const float *q = (const float *)rows->q + r * E;
                __m512 s[16];
                UNROLL for (size_t four = 0; four < 16; four += 4) {
                    const float *k = (const float *)chunk->spans[t / SPAN].k + (t % SPAN + four) * E;
                    __m512 x = _mm512_loadu_ps(q);
                    UNROLL for (size_t i = 0; i < 4; i++)
                        s[four + i] = _mm512_mul_ps(x, _mm512_load_ps(k + i * E));
                    for (size_t e = 16; e < E; e += 16) {
                        x = _mm512_loadu_ps(q + e);
                        UNROLL for (size_t i = 0; i < 4; i++)
                            s[four + i] = _mm512_add_ps(s[four + i], _mm512_mul_ps(x, _mm512_load_ps(k + i * E + e)));
                    }
                }
                __m512 factor = _mm512_set1_ps(rows->factor[0][r]);
                _mm512_store_ps(rows->scores + r * STRIDE + t, _mm512_mul_ps(sixteen_lane_sums(s), factor));
            }
}

static void weights_fp32(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last, int p_bits)
{
    (void)chunk, (void)first, (void)last, (void)p_bits;
    for (size_t r = 0; r < rows->rows; r++) {
        float *scores = rows->scores + r * STRIDE, *out = rows->out + r * (rows->E + OUT_EXTRA) + rows->E;
        float top = largest_score(scores, rows->from[r], rows->to[r]);
        __m512 total = _mm512_setzero_ps();
        for (size_t t = rows->from[r] / SPAN * SPAN; t < rows->to[r]; t += 16) {
            __m512 p = fixed_exp2_avx512(_mm512_sub_ps(_mm512_load_ps(scores + t), _mm512_set1_ps(top)));
            total = _mm512_add_ps(total, p);
            _mm512_store_ps(scores + t, p);
        }
        out[OUT_TOP] = top;
        out[OUT_TOTAL] = fixed_lanes_avx512(total);
    }
}

/* out [16 L] += p v, token by token. */
INLINE void values_span(float *out, const float *p, const float *v, size_t from, size_t to, size_t E, const int L)
{
    __m512 sum[8];
    UNROLL for (int i = 0; i < L; i++)
        sum[i] = _mm512_load_ps(out + 16 * i);
    for (size_t t = from; t < to; t++) {
        __m512 weight = _mm512_set1_ps(p[t]);
        UNROLL for (int i = 0; i < L; i++)
            sum[i] = _mm512_add_ps(sum[i], _mm512_mul_ps(weight, _mm512_load_ps(v + t * E + 16 * (size_t)i)));
    }
    UNROLL for (int i = 0; i < L; i++)
        _mm512_store_ps(out + 16 * i, sum[i]);
}

static void values_fp32(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    size_t E = rows->E;
    zero_out(rows);
    for (size_t b = first * SPAN / BLOCK; b < last * SPAN / BLOCK; b++)
        for (size_t r = 0; r < rows->rows; r++) {
            size_t from = rows->from[r] > b * BLOCK ? rows->from[r] - b * BLOCK : 0, e = 0;
            size_t to = rows->to[r] < b * BLOCK ? 0 : rows->to[r] - b * BLOCK;
            to = to < BLOCK ? to : BLOCK;
            float *out = rows->out + r * (E + OUT_EXTRA);
            const float *p = rows->scores + r * STRIDE + b * BLOCK;
            const float *v = (const float *)chunk->spans[b * BLOCK / SPAN].v + b * BLOCK % SPAN * E;
            for (; e + 128 <= E; e += 128)
                values_span(out + e, p, v + e, from, to, E, 8);
            for (; e < E; e += DIMS)
                values_span(out + e, p, v + e, from, to, E, 2);
        }
}
