/* Reads one tap of a golden pack: cc -std=c99 golden_reader.c -lm && ./a.out PACK/prompt.safetensors lm_head */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what) { return fprintf(stderr, "%s\n", what), 1; }

static uint64_t little_endian(const unsigned char *bytes, int count) {
    uint64_t value = 0;
    while (count--) value = value << 8 | bytes[count];
    return value;
}

/* Where the value of a key begins: at the next `first` behind it; NULL if there is none. Keys hold no escapes. */
static char *value_of(char *text, const char *key, char first) {
    size_t n = strlen(key);
    for (char *at = text; (at = strchr(at, '"')) != NULL; at++)
        if (strncmp(at + 1, key, n) == 0 && at[n + 1] == '"') return strchr(at + n + 2, first);
    return NULL;
}

int main(int argc, char **argv) {
    FILE *file = argc == 3 ? fopen(argv[1], "rb") : NULL;
    unsigned char bytes[8];
    if (file == NULL || fread(bytes, 1, 8, file) != 8) return fail("usage: golden_reader PHASE.safetensors TAP");
    uint64_t length = little_endian(bytes, 8), count = 1, hidden = 0;
    char *header = length < 1 << 24 ? calloc(length + 1, 1) : NULL;
    if (header == NULL || fread(header, 1, length, file) != length) return fail("no header");
    char *entry = value_of(header, argv[2], '{'), *end = entry ? strchr(entry, '}') : NULL;
    if (end == NULL) return fail("no such tap");
    *end = 0; /* from here on, only this tap's fields are seen */
    char *shape = value_of(entry, "shape", '['), *offsets = value_of(entry, "data_offsets", '[');
    if (shape == NULL || offsets == NULL || strstr(entry, "\"F32\"") == NULL) return fail("not float32");
    do { /* after [ and after each comma comes a number */
        uint64_t size = strtoull(shape + 1, &shape, 10);
        printf("%llu ", (unsigned long long)size);
        count *= size;
    } while (*shape == ',');
    if (fseek(file, (long)(8 + length + strtoull(offsets + 1, NULL, 10)), SEEK_SET)) return fail("cut short");
    double sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (fread(bytes, 1, 4, file) != 4) return fail("cut short");
        uint32_t bits = (uint32_t)little_endian(bytes, 4);
        float value;
        memcpy(&value, &bits, 4);
        if (isinf(value)) hidden++; /* a masked score */
        else sum += (double)value * value;
    }
    printf("rms %.9g hidden %llu\n", sqrt(sum / (double)(count - hidden)), (unsigned long long)hidden);
    return 0;
}
