/* A pool of threads that take the pieces of a loop from one counter.
 *
 * A thread that the system has put aside takes no piece, so nobody waits for it: the others do the work, and it finds
 * nothing left. Only a thread that is put aside in the middle of a piece holds a loop up. Where that happens, other
 * programs are using the processors, and the loops of the next moments run on the calling thread alone.
 *
 * One loop at a time has the pool. A loop of another thread that begins meanwhile runs on that thread alone. */
#include "common/parallel.h"

#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#include "common/check.h"

enum {
    NEXT_BITS = 24,
    CLOSED = (1 << NEXT_BITS) - 1, /* as the next unit: there is no job */
    SHARE = 16,                    /* a thread takes a 16th of its share of what is left: at last, single units */
    SPIN = 50 * 1000,              /* nanoseconds for which a thread looks for work before it sleeps */
    LATE = 100 * 1000,             /* nanoseconds: the caller waited so long because a piece was put aside */
    ALONE = 8                      /* so many times as long does it then work alone */
};

/* A job, as far as a thread needs it to run its units: pieces `unit` at a time. */
typedef struct {
    qwq_pieces *run;
    const void *job;
    size_t pieces, unit, units, first, end; /* the thread's own units: first to end - 1 */
} share;

/* The fields of a job are written while its ticket is closed. A thread reads them before it moves the ticket. If that
 * succeeds, the ticket was the same all the while, and so was the job. */
static struct {
    _Alignas(64) _Atomic uint64_t ticket; /* the number of the job, and the next unit in the lowest NEXT_BITS bits */
    _Alignas(64) _Atomic size_t done;     /* units */
    _Alignas(64) _Atomic(qwq_pieces *) run;
    _Atomic(const void *) job;
    _Atomic size_t pieces, unit, units;
    _Atomic int threads;
    _Atomic int sleeping, waiting; /* threads without work; whether the caller sleeps until the last unit is done */
    _Alignas(64) atomic_flag taken;
    int workers;          /* threads of the pool; this and the next belong to the caller that has the pool */
    uint64_t alone_until; /* nanoseconds */
    pthread_mutex_t lock;
    pthread_cond_t work, complete;
} pool = {.ticket = CLOSED,
          .taken = ATOMIC_FLAG_INIT,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .work = PTHREAD_COND_INITIALIZER,
          .complete = PTHREAD_COND_INITIALIZER};

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void rest(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static size_t next_of(uint64_t ticket)
{
    return ticket & CLOSED;
}

static int has_work(size_t worker)
{
    uint64_t ticket = atomic_load(&pool.ticket);
    return next_of(ticket) < atomic_load(&pool.units) && (int)worker < atomic_load(&pool.threads);
}

static int complete(size_t units)
{
    return atomic_load(&pool.done) == units;
}

/* Take units for a worker -> whether any were left. */
static int take(share *s, int worker)
{
    uint64_t ticket = atomic_load(&pool.ticket);
    size_t next, some;
    do {
        int threads = atomic_load_explicit(&pool.threads, memory_order_relaxed);
        s->units = atomic_load_explicit(&pool.units, memory_order_relaxed);
        s->unit = atomic_load_explicit(&pool.unit, memory_order_relaxed);
        s->pieces = atomic_load_explicit(&pool.pieces, memory_order_relaxed);
        s->run = atomic_load_explicit(&pool.run, memory_order_relaxed);
        s->job = atomic_load_explicit(&pool.job, memory_order_relaxed);
        next = next_of(ticket);
        if (next >= s->units || worker >= threads)
            return 0;
        some = (s->units - next) / ((size_t)threads * SHARE);
        some += !some;
    } while (!atomic_compare_exchange_weak(&pool.ticket, &ticket, ticket + some));
    s->first = next;
    s->end = next + some;
    return 1;
}

static void work(int worker)
{
    share s;
    while (take(&s, worker)) {
        s.run(s.job, s.first * s.unit, smaller(s.end * s.unit, s.pieces), worker);
        if (atomic_fetch_add(&pool.done, s.end - s.first) + (s.end - s.first) == s.units &&
            atomic_load(&pool.waiting)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.complete);
            pthread_mutex_unlock(&pool.lock);
        }
    }
}

/* Look until a condition holds, or it is time to sleep -> whether it holds. */
static int spin_until(int (*holds)(size_t), size_t argument)
{
    uint64_t end = now() + SPIN;
    do {
        for (int i = 0; i < 32; i++) {
            if (holds(argument))
                return 1;
            rest();
        }
    } while (now() < end);
    return 0;
}

static void *worker_main(void *number)
{
    size_t worker = (size_t)(uintptr_t)number;
    fesetenv(FE_DFL_ENV); /* not that of the thread that happened to start this one */
    for (;;) {
        work((int)worker);
        if (spin_until(has_work, worker))
            continue;
        pthread_mutex_lock(&pool.lock);
        atomic_fetch_add(&pool.sleeping, 1);
        while (!has_work(worker))
            pthread_cond_wait(&pool.work, &pool.lock);
        atomic_fetch_sub(&pool.sleeping, 1);
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

/* A forked child has the memory of the pool without its threads. It starts its own. */
static void after_fork(void)
{
    pool.workers = 0;
    pool.alone_until = 0;
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.work, NULL);
    pthread_cond_init(&pool.complete, NULL);
    atomic_store(&pool.sleeping, 0);
    atomic_store(&pool.waiting, 0);
    atomic_store(&pool.ticket, (atomic_load(&pool.ticket) | CLOSED) + 1 + CLOSED);
    atomic_flag_clear(&pool.taken);
}

static void at_first(void)
{
    pthread_atfork(NULL, NULL, after_fork);
}

/* Start threads until the pool has so many, or the system refuses one. Signals go to threads of the application. */
static void start(int workers)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, at_first);
    sigset_t all, before;
    pthread_attr_t detached;
    if (pool.workers >= workers || pthread_attr_init(&detached))
        return;
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    while (pool.workers < workers &&
           !pthread_create(&thread, &detached, worker_main, (void *)(uintptr_t)(pool.workers + 1)))
        pool.workers++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
}

/* Let the others in. From here on, the ticket is open. */
static void publish(const share *s, int threads)
{
    atomic_store_explicit(&pool.run, s->run, memory_order_relaxed);
    atomic_store_explicit(&pool.job, s->job, memory_order_relaxed);
    atomic_store_explicit(&pool.pieces, s->pieces, memory_order_relaxed);
    atomic_store_explicit(&pool.unit, s->unit, memory_order_relaxed);
    atomic_store_explicit(&pool.units, s->units, memory_order_relaxed);
    atomic_store_explicit(&pool.threads, threads, memory_order_relaxed);
    atomic_store_explicit(&pool.done, 0, memory_order_relaxed);
    atomic_store(&pool.ticket, atomic_load(&pool.ticket) - CLOSED);
    if (atomic_load(&pool.sleeping)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.work);
        pthread_mutex_unlock(&pool.lock);
    }
}

/* Wait for the units that others have taken. */
static void wait_for(size_t units)
{
    if (spin_until(complete, units))
        return;
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.waiting, 1);
    while (!complete(units))
        pthread_cond_wait(&pool.complete, &pool.lock);
    atomic_store(&pool.waiting, 0);
    pthread_mutex_unlock(&pool.lock);
}

void qwq_parallel_for(qwq_pieces *run, const void *job, size_t pieces, int threads)
{
    uint64_t begin;
    if (threads < 2 || pieces < 2 || atomic_flag_test_and_set(&pool.taken)) {
        run(job, 0, pieces, 0);
        return;
    }
    if ((begin = now()) < pool.alone_until) {
        atomic_flag_clear(&pool.taken);
        run(job, 0, pieces, 0);
        return;
    }
    start(threads - 1);
    share s = {.run = run, .job = job, .pieces = pieces, .unit = pieces / CLOSED + 1};
    s.units = (pieces + s.unit - 1) / s.unit;
    publish(&s, threads);
    work(0);
    uint64_t alone = now();
    wait_for(s.units);
    uint64_t end = now(), waited = end - alone;
    if (waited > LATE && waited > alone - begin)
        pool.alone_until = end + ALONE * waited;
    atomic_store(&pool.ticket, (atomic_load(&pool.ticket) | CLOSED) + 1 + CLOSED); /* the next job's number, closed */
    atomic_flag_clear(&pool.taken);
}
