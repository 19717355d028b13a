/* Frequencies and tables of RoPE, in double precision and without the system's mathematics, whose last bits differ.
 *
 * Powers and logarithms are computed to 100 bits as unevaluated sums of two doubles, by series; so a float32 power is
 * the correctly rounded one. NumPy: spec.ops.rope_frequencies, numerics.fixed.rope_tables.
 */
#include <stdint.h>
#include <string.h>

#include "common/check.h"
#include "qwq.h"

typedef struct {
    double high, low; /* low is at most half the last bit of high */
} two;

static two two_sum(double a, double b)
{
    double s = a + b, t = s - a;
    return (two){s, (a - (s - t)) + (b - t)};
}

static two two_product(double a, double b)
{
    const double split = 0x1p27 + 1; /* halves of 26 bits, whose products are exact */
    double a1 = split * a - (split * a - a), a2 = a - a1, b1 = split * b - (split * b - b), b2 = b - b1;
    double p = a * b;
    return (two){p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2};
}

static two add(two a, two b)
{
    two s = two_sum(a.high, b.high);
    return two_sum(s.high, s.low + a.low + b.low);
}

static two multiply(two a, two b)
{
    two p = two_product(a.high, b.high);
    return two_sum(p.high, p.low + a.high * b.low + a.low * b.high);
}

static two divide(two a, two b)
{
    double q = a.high / b.high;
    two back = multiply(b, (two){q, 0});
    two rest = add(a, (two){-back.high, -back.low});
    return two_sum(q, rest.high / b.high);
}

static const two LN2 = {0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56};

static double power_of_two(int64_t n)
{
    uint64_t bits = (uint64_t)(n + 1023) << 52;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* ln x of a normal positive x = 2^n m: 2 atanh((m - 1) / (m + 1)). */
static two logarithm(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t n = (int64_t)(bits >> 52) - 1023;
    double m = x * power_of_two(-n);
    if (m > 1.4142) {
        m = m / 2;
        n++;
    }
    two s = divide((two){m - 1, 0}, two_sum(m, 1)), square = multiply(s, s), sum = {0, 0};
    for (int i = 41; i >= 1; i -= 2)
        sum = add(divide((two){1, 0}, (two){i, 0}), multiply(sum, square));
    sum = multiply(s, sum);
    return add((two){2 * sum.high, 2 * sum.low}, multiply(LN2, (two){(double)n, 0}));
}

/* e^y for 0 <= y < 700, to double: 2^n times Taylor's series. */
static double exponential(two y)
{
    int64_t n = (int64_t)(y.high / LN2.high + 0.5);
    two whole = multiply(LN2, (two){(double)n, 0}), r = add(y, (two){-whole.high, -whole.low}), sum = {1, 0};
    for (int i = 26; i >= 1; i--)
        sum = add((two){1, 0}, divide(multiply(sum, r), (two){i, 0}));
    return sum.high * power_of_two(n);
}

/* The pair that turns so many times within the trained length. */
static double dimension_of(double turns, double original, double theta, size_t E)
{
    const double pi = 0x1.921fb54442d18p+1;
    return (double)E * logarithm(original / (turns * 2 * pi)).high / (2 * logarithm(theta).high);
}

static double round_down(double x)
{
    double whole = (double)(int64_t)x;
    return whole > x ? whole - 1 : whole;
}

int qwq_rope_frequencies(float *inv_freq, double theta, int yarn, double factor, double original, double beta_fast,
                         double beta_slow, int truncate, size_t E)
{
    if (!E || E % 2 || E > (1u << 20) || !(theta > 1 && theta < 1e30))
        return QWQ_ESIZE;
    int code = qwq_check(&(qwq_array){inv_freq, E / 2 * sizeof(float), 4}, 1, 1);
    if (code)
        return code;
    double low = 0, high = 1;
    if (yarn) {
        if (!(factor >= 1 && factor < 1e30 && original >= 1 && original < 1e30))
            return QWQ_ESIZE;
        if (!(beta_slow > 1e-30 && beta_fast >= beta_slow && beta_fast < 1e30))
            return QWQ_ESIZE;
        low = dimension_of(beta_fast, original, theta, E);
        high = dimension_of(beta_slow, original, theta, E);
        if (!(low > -1e15 && low < 1e15 && high > -1e15 && high < 1e15)) /* theta so near 1 that nothing turns */
            return QWQ_ESIZE;
        if (truncate) {
            low = round_down(low);
            high = -round_down(-high);
        }
        low = low > 0 ? low : 0;
        high = high < (double)(E - 1) ? high : (double)(E - 1);
        if (low == high)
            high += 0.001;
    }
    two log_theta = logarithm(theta);
    for (size_t i = 0; i < E / 2; i++) {
        float exponent = (float)(2 * i) / (float)E;
        float period = (float)exponential(multiply(log_theta, (two){exponent, 0})); /* over 2 pi */
        float frequency = 1.0f / period;
        inv_freq[i] = frequency;
        if (yarn) {
            float ramp = ((float)i - (float)low) / (float)(high - low);
            float keep = 1.0f - (ramp < 0 ? 0 : ramp > 1 ? 1.0f : ramp);
            float slowed = 1.0f / ((float)factor * period);
            inv_freq[i] = slowed * (1.0f - keep) + frequency * keep;
        }
    }
    return 0;
}

/* cos and sin of an angle from 0 to 2^27: r = angle - n pi/2 with pi/2 in three parts, of which n times the first two
 * is exact, and Taylor's series of r. */
static void turn(float *cosine, float *sine, float angle)
{
    const double half_pi[3] = {0x1.921fb5p+0, 0x1.110b46p-26, 0x1.1a62633145c07p-54};
    int64_t n = (int64_t)(angle * 0x1.45f306dc9c883p-1 + 0.5);
    double k = (double)n, r = ((angle - k * half_pi[0]) - k * half_pi[1]) - k * half_pi[2], square = r * r;
    double c = 1.0 / 20922789888000.0, s = -1.0 / 1307674368000.0; /* 1/16!, -1/15! */
    c = c * square + -1.0 / 87178291200.0;
    s = s * square + 1.0 / 6227020800.0;
    c = c * square + 1.0 / 479001600.0;
    s = s * square + -1.0 / 39916800.0;
    c = c * square + -1.0 / 3628800.0;
    s = s * square + 1.0 / 362880.0;
    c = c * square + 1.0 / 40320.0;
    s = s * square + -1.0 / 5040.0;
    c = c * square + -1.0 / 720.0;
    s = s * square + 1.0 / 120.0;
    c = c * square + 1.0 / 24.0;
    s = s * square + -1.0 / 6.0;
    c = c * square + -1.0 / 2.0;
    s = r + r * square * s;
    c = 1.0 + c * square;
    double x = n & 1 ? s : c, y = n & 1 ? c : s;
    *cosine = (float)((n + 1) & 2 ? -x : x);
    *sine = (float)(n & 2 ? -y : y);
}

int qwq_rope_tables(float *cos, float *sin, const float *inv_freq, float scaling, const int32_t *positions, size_t T,
                    size_t E)
{
    if (!E || E % 2 || E > (1u << 20) || T > (1u << 26))
        return QWQ_ESIZE;
    size_t half = E / 2, bytes = T * half * 4;
    const qwq_array arrays[] = {{cos, bytes, 4}, {sin, bytes, 4}, {inv_freq, half * 4, 4}, {positions, T * 4, 4}};
    int code = qwq_check(arrays, 2, 4);
    if (code)
        return code;
    for (size_t i = 0; i < half; i++)
        if (!(inv_freq[i] >= 0 && inv_freq[i] <= 1))
            return QWQ_ESIZE;
    for (size_t t = 0; t < T; t++)
        if (positions[t] < 0 || positions[t] > 1 << 26)
            return QWQ_ESIZE;
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < half; i++) {
            float c, s;
            turn(&c, &s, (float)positions[t] * inv_freq[i]);
            cos[t * half + i] = c * scaling;
            sin[t * half + i] = s * scaling;
        }
    return 0;
}
