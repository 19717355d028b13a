/* The keys' bias in the scores of an int8 cache, for both rungs of 256 bits. Included within their TARGET. */

/* Its part of the scores of some spans is added to the others. */
static void add_bias(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    size_t pairs = rows->pairs;
    for (size_t t = first * SPAN; t < last * SPAN; t += 8)
        for (size_t r = 0; r < rows->rows; r++) {
            const int16_t *line = chunk->bias + t / 16 * pairs * 32 + t % 16 * 2, *q = rows->bias_q + 2 * r;
            float *scores = rows->scores + r * STRIDE + t;
            __m256i sum = _mm256_setzero_si256();
            for (size_t n = 0; n < pairs; n++, line += 32, q += 2 * rows->rows) {
                __m256i words = _mm256_load_si256((const __m256i *)(const void *)line);
                __m256i two = _mm256_set1_epi32(*(const int32_t *)(const void *)q);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(words, two));
            }
            __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(rows->bias_factor[r]));
            _mm256_store_ps(scores, _mm256_add_ps(_mm256_load_ps(scores), x));
        }
}
