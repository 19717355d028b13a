/* A stress of the pool of csrc/common/parallel.c, for tests/core/test_threads.py: alone, or under ThreadSanitizer.
 *
 *     pool_stress SECONDS CALLERS MOST_NEW_THREADS
 *
 * Callers run loops of random sizes side by side. Every piece must run once, no two threads may have one worker number
 * at once, and a loop may not return before its last piece. Prints the loops, the threads that the pool started, and
 * the pieces that threads of the pool ran. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

static int started, most_new; /* threads of the pool */

static int limited_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    if (started == most_new)
        return 11; /* EAGAIN: the system has no room for another thread */
    started++;
    return pthread_create(thread, attributes, start, argument);
}

/* A thread is put aside at the worst moment: between its look at a job and its claim. */
static void put_aside(void)
{
    static _Thread_local unsigned calls;
    if (++calls % 4 == 0)
        usleep(100);
}
#define WEAK(object, expected, desired) atomic_compare_exchange_weak(object, expected, desired)
static _Bool late_exchange(_Atomic uint64_t *object, uint64_t *expected, uint64_t desired)
{
    put_aside();
    return WEAK(object, expected, desired);
}
#undef atomic_compare_exchange_weak
#define atomic_compare_exchange_weak late_exchange
#define pthread_create limited_create
#include "common/parallel.c"
#undef pthread_create

enum { MOST_PIECES = 3000, MOST_WORKERS = 40, GONE = 77 };

typedef struct {
    _Atomic int ran[MOST_PIECES];
    _Atomic int busy[MOST_WORKERS];
    int threads, slow;
} loop;

static _Atomic long loops, by_others;
static uint64_t end_time;

static void pieces(const void *job, size_t first, size_t end, int worker)
{
    loop *l = (loop *)(uintptr_t)job;
    assert(worker >= 0 && worker < l->threads);
    assert(atomic_fetch_add(&l->busy[worker], 1) == 0);
    for (size_t piece = first; piece < end; piece++) {
        if (l->slow && piece % 64 == 0)
            usleep((useconds_t)l->slow);
        assert(atomic_fetch_add(&l->ran[piece], 1) == 0);
        atomic_fetch_add(&by_others, worker > 0);
    }
    atomic_fetch_sub(&l->busy[worker], 1);
}

static void *caller(void *seed)
{
    unsigned state = (unsigned)(uintptr_t)seed;
    loop *all = calloc(8, sizeof *all); /* in turns: a thread with an earlier job would change that one's memory */
    for (unsigned turn = 0; now() < end_time; turn++) {
        loop *l = &all[turn % 8];
        size_t count = (size_t)rand_r(&state) % (rand_r(&state) % 8 ? 5 : MOST_PIECES);
        for (size_t piece = 0; piece < MOST_PIECES; piece++)
            assert(l->ran[piece] == (turn < 8 ? 0 : GONE));
        memset(l, 0, sizeof *l);
        l->threads = rand_r(&state) % (MOST_WORKERS - 1) + 1;
        l->slow = rand_r(&state) % 8 ? 0 : 50;
        qwq_parallel_for(pieces, l, count, l->threads);
        for (size_t piece = 0; piece < MOST_PIECES; piece++) {
            assert(l->ran[piece] == (piece < count));
            l->ran[piece] = GONE;
        }
        l->threads = 0;
        atomic_fetch_add(&loops, 1);
        if (rand_r(&state) % 64 == 0)
            usleep(200); /* long enough for the others to sleep */
    }
    free(all);
    return NULL;
}

/* Units of more than one piece: their number is beyond what a ticket counts. */
static void count_pieces(const void *job, size_t first, size_t end, int worker)
{
    (void)worker;
    atomic_fetch_add((_Atomic size_t *)(uintptr_t)job, end - first);
}

int main(int count, char **arguments)
{
    assert(count == 4);
    int callers = atoi(arguments[2]);
    pthread_t threads[16];
    most_new = atoi(arguments[3]);
    end_time = now() + (uint64_t)(atof(arguments[1]) * 1e9);
    for (int i = 0; i < callers; i++)
        assert(!pthread_create(&threads[i], NULL, caller, (void *)(uintptr_t)(i + 1)));
    for (int i = 0; i < callers; i++)
        pthread_join(threads[i], NULL);
    _Atomic size_t seen = 0;
    size_t many = 5 * (size_t)CLOSED + 4;
    qwq_parallel_for(count_pieces, &seen, many, 4);
    assert(seen == many);
    printf("%ld %d %ld\n", loops, started, by_others);
    return 0;
}
