/* From TARGET to TARGET_END, functions may use these instructions: one way to say it to GCC and to Clang, which ignores
 * `#pragma GCC target`. Clang defines no __AVX2__ then, so no header may ask for it; include all before TARGET. */
#ifndef QWQ_TARGET_H
#define QWQ_TARGET_H

#define TARGET_PRAGMA(...) _Pragma(#__VA_ARGS__)

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wunknown-pragmas" /* GCC unroll: what is constant, Clang unrolls by itself */
#define TARGET(features) TARGET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END TARGET_PRAGMA(clang attribute pop)
#else
#define TARGET(features) TARGET_PRAGMA(GCC push_options) TARGET_PRAGMA(GCC target(features))
#define TARGET_END TARGET_PRAGMA(GCC pop_options)
#endif

#endif
