/* One uniform number for each token, from a counter and no state. NumPy: numerics.fixed.uniform. */
#include "qwq.h"

__extension__ typedef unsigned __int128 wide;

/* Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": the first word of Philox4x64-10. */
static uint64_t philox(const uint64_t key[2], const uint64_t counter[4])
{
    uint64_t a = counter[0], b = counter[1], c = counter[2], d = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        wide p = (wide)0xD2E7470EE14C6C93u * a, q = (wide)0xCA5A826395121157u * c;
        a = (uint64_t)(q >> 64) ^ b ^ k0;
        b = (uint64_t)q;
        c = (uint64_t)(p >> 64) ^ d ^ k1;
        d = (uint64_t)p;
        k0 += 0x9E3779B97F4A7C15u;
        k1 += 0xBB67AE8584CAA73Bu;
    }
    return a;
}

double qwq_uniform(uint64_t seed, uint64_t i)
{
    /* NumPy counts before it draws, and carries. */
    uint64_t key[2] = {seed, 0}, counter[4] = {i + 1, i + 1 == 0, 0, 0};
    return (double)(philox(key, counter) >> 11) * 0x1p-53;
}
