/* Bodies whose constant arguments the compiler folds, in place of macros: a function for each number of tokens. */
#ifndef QWQ_INLINE_H
#define QWQ_INLINE_H

#define INLINE static inline __attribute__((always_inline))
#define QWQ_UNROLL(n) _Pragma(#n)
#define UNROLL_BY(n) QWQ_UNROLL(GCC unroll n)
#define UNROLL UNROLL_BY(8)

/* body(..., n) with n as a constant from 1 to 6. */
#define FOR_TILE(n, body, ...)                                                                                         \
    switch (n) {                                                                                                       \
    case 1: body(__VA_ARGS__, 1); break;                                                                               \
    case 2: body(__VA_ARGS__, 2); break;                                                                               \
    case 3: body(__VA_ARGS__, 3); break;                                                                               \
    case 4: body(__VA_ARGS__, 4); break;                                                                               \
    case 5: body(__VA_ARGS__, 5); break;                                                                               \
    default: body(__VA_ARGS__, 6); break;                                                                              \
    }

#endif
