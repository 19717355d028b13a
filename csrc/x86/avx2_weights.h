/* Weights of int8 values, for AVX2 and AVX-VNNI. The file that includes this says before how a block's weights are
 * stored: store_weights(rows, r, b, high, low), with 32 upper and 32 lower bytes as integers in four registers each. */

INLINE float largest_of(__m256 x)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* The largest score that a row sees. Those beside it, in the same blocks, become too low to count. */
INLINE float largest_score(float *scores, size_t from, size_t to)
{
    for (size_t t = from / BLOCK * BLOCK; t < from; t++)
        scores[t] = ATTENTION_LOWEST;
    for (size_t t = to; t % BLOCK; t++)
        scores[t] = ATTENTION_LOWEST;
    __m256 a = _mm256_set1_ps(ATTENTION_LOWEST);
    for (size_t t = from / BLOCK * BLOCK; t < (to + BLOCK - 1) / BLOCK * BLOCK; t += 8)
        a = _mm256_max_ps(a, _mm256_load_ps(scores + t));
    return largest_of(a);
}

INLINE int32_t sum_of(__m256i x)
{
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

static void weights_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last, int p_bits)
{
    const __m256i zero[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                             _mm256_setzero_si256()};
    for (size_t b = first * SPAN / BLOCK; b < last * SPAN / BLOCK; b++)
        rows->wide[b] = p_bits == 16;
    for (size_t r = 0; r < rows->rows; r++) {
        float *scores = rows->scores + r * STRIDE, *out = rows->out + r * (rows->E + OUT_EXTRA) + rows->E;
        size_t from = rows->from[r], to = rows->to[r];
        float top = largest_score(scores, from, to);
        __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (size_t b = first * SPAN / BLOCK; b < last * SPAN / BLOCK; b++) {
            if (b < from / BLOCK || b * BLOCK >= to) {
                store_weights(rows, r, b, zero, zero);
                rows->unit[r][b] = 0;
                continue;
            }
            __m256 w[4], largest = _mm256_setzero_ps();
            for (size_t i = 0; i < 4; i++) {
                size_t t = b * BLOCK + 8 * i;
                __m256 p = fixed_exp2_avx2(_mm256_sub_ps(_mm256_load_ps(scores + t), _mm256_set1_ps(top)));
                total[i % 2] = _mm256_add_ps(total[i % 2], p);
                /* where p is 0, anything may lie in the cache */
                __m256 counts = _mm256_cmp_ps(p, _mm256_setzero_ps(), _CMP_GT_OQ);
                w[i] =
                    _mm256_and_ps(counts, _mm256_mul_ps(p, _mm256_load_ps(chunk->spans[t / SPAN].v_scale + t % SPAN)));
                largest = _mm256_max_ps(largest, w[i]);
            }
            float most = largest_of(largest);
            __m256 inverse = _mm256_set1_ps(most >= ATTENTION_SMALLEST ? UNITS / most : 0);
            __m256i c[4], high[4], low[4], sum = zero[0], off = zero[0];
            for (int i = 0; i < 4; i++) {
                c[i] = _mm256_cvtps_epi32(_mm256_mul_ps(w[i], inverse));
                high[i] = _mm256_srli_epi32(_mm256_add_epi32(c[i], _mm256_set1_epi32(128)), 8);
                low[i] = zero[0];
                sum = _mm256_add_epi32(sum, c[i]);
                off = _mm256_add_epi32(off, _mm256_sub_epi32(c[i], _mm256_slli_epi32(high[i], 8)));
            }
            int32_t all = sum_of(sum), rest = sum_of(off);
            if (p_bits == 16 || (p_bits == 0 && (rest < 0 ? -rest : rest) * 128 > all)) {
                rows->wide[b] = 1;
                for (int i = 0; i < 4; i++) {
                    high[i] = _mm256_srli_epi32(c[i], 8);
                    low[i] = _mm256_and_si256(c[i], _mm256_set1_epi32(255));
                }
            }
            store_weights(rows, r, b, high, low);
            rows->unit[r][b] = most * (1.0f / UNITS);
        }
        out[OUT_TOP] = top;
        out[OUT_TOTAL] = fixed_lanes_avx2(total[0], total[1]);
    }
}

INLINE void zero_out(qwq_rows *rows)
{
    for (size_t r = 0; r < rows->rows; r++)
        for (size_t e = 0; e < rows->E; e += 8)
            _mm256_store_ps(rows->out + r * (rows->E + OUT_EXTRA) + e, _mm256_setzero_ps());
}
