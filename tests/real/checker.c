/* checker SEED THREADS STEPS FILE [daemonize]
 *
 * So many threads take so many random steps each, in memory of which every byte is known, and check every byte all the time. Everything that can be
 * done to memory is done to it. Ends with 0, or says what is wrong and ends with 1.
 *
 * Written for the test only; no two threads touch the same pages but where that is what is tested. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

enum { PAGE = 4096, WORDS = PAGE / 8, AREAS = 4, MOST = 384, RUN = 48 };

/* What a page holds: zeros for no tag, else words made of the tag. Where it was freed lazily, that or zeros. */
struct area {
    char *at;
    size_t pages;
    /* Of several mappings, perhaps: mremap may refuse it then. */
    int split;
    uint64_t tag[MOST];
    unsigned char lazy[MOST];
};

struct worker {
    uint64_t random, tags;
    int index, file, direct, pipe[2], pair[2];
    struct area area[AREAS];
    /* A page that a partner thread shares: words to wait for, a mutex and a condition. */
    struct meeting *meeting;
    pthread_t partner, thread;
    long steps;
    const char *doing;
    uint64_t done[64];
};

struct meeting {
    _Atomic uint32_t turn, ended;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t count;
    uint64_t rest[400];
};

static const char *path;
static int daemonize;
static _Atomic int over, children_wrong, outliving;
static _Atomic long refused;

static void fail(struct worker *me, const char *format, ...) {
    va_list list;
    va_start(list, format);
    char text[512];
    int length = snprintf(text, sizeof text, "process %d thread %d, %ld steps to go, %s: ", getpid(), me ? me->index : -1, me ? me->steps : 0,
                          me && me->doing ? me->doing : "at the start");
    length += vsnprintf(text + length, sizeof text - length - 1, format, list);
    text[length++] = '\n';
    if (write(2, text, length) < 0) {}
    _exit(1);
}

/* Who hit it is told by where its pages are: a worker's areas, or nobody's. */
static struct worker *all;
static int threads;

static void crashed(int number, siginfo_t *info, void *context) {
    (void)context;
    struct worker *hit = NULL;
    for (int i = 0; i < threads; i++)
        for (int area = 0; area < AREAS; area++) {
            char *at = all[i].area[area].at;
            if ((char *)info->si_addr >= at && (char *)info->si_addr < at + all[i].area[area].pages * PAGE) hit = &all[i];
        }
    fail(hit, "signal %d, code %d, at %p, in thread %d", number, info->si_code, info->si_addr, (int)syscall(SYS_gettid));
}

static uint64_t next(struct worker *me) {
    me->random ^= me->random << 13;
    me->random ^= me->random >> 7;
    me->random ^= me->random << 17;
    return me->random;
}

static size_t below(struct worker *me, size_t bound) { return (next(me) >> 16) % bound; }

static uint64_t word(uint64_t tag, size_t at) {
    if (!tag) return 0;
    /* A third of all pages compresses well, a third to one word, a third not at all. */
    switch (tag % 3) {
    case 0: return tag ^ (at & 1);
    case 1: return tag;
    default: return (tag + at) * UINT64_C(0x9e3779b97f4a7c15) ^ (tag * (at + 7)) >> 5;
    }
}

static int holds(const uint64_t *page, uint64_t tag, size_t *at) {
    for (size_t i = 0; i < WORDS; i++)
        if (page[i] != word(tag, i)) {
            *at = i;
            return 0;
        }
    return 1;
}

static void fill(void *page, uint64_t tag) {
    uint64_t *words = page;
    for (size_t i = 0; i < WORDS; i++) words[i] = word(tag, i);
}

static char *page_of(struct area *area, size_t page) { return area->at + page * PAGE; }

static void check(struct worker *me, struct area *area, size_t page) {
    const uint64_t *words = (void *)page_of(area, page);
    size_t at = 0, zero = 0;
    if (holds(words, area->tag[page], &at)) return;
    if (area->lazy[page] && holds(words, 0, &zero)) return;
    fail(me, "page %zu of %zu at %p, word %zu: %llx and not %llx, tag %llx%s; then %llx and not %llx", page, area->pages, (void *)words, at,
         (unsigned long long)words[at], (unsigned long long)word(area->tag[page], at), (unsigned long long)area->tag[page],
         area->lazy[page] ? ", lazily freed" : "", (unsigned long long)words[(at + 1) % WORDS], (unsigned long long)word(area->tag[page], (at + 1) % WORDS));
}

static void put(struct worker *me, struct area *area, size_t page) {
    area->tag[page] = ++me->tags << 8 | (me->index + 1);
    area->lazy[page] = 0;
    fill(page_of(area, page), area->tag[page]);
}

static void check_all(struct worker *me) {
    for (int a = 0; a < AREAS; a++)
        for (size_t page = 0; page < me->area[a].pages; page++) check(me, &me->area[a], page);
}

static void *map(struct worker *me, void *at, size_t pages, int protection) {
    void *got = mmap(at, pages * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);
    if (got == MAP_FAILED) fail(me, "mmap: %s", strerror(errno));
    return got;
}

static void need(struct worker *me, int fine, const char *what) {
    if (!fine) fail(me, "%s: %s", what, strerror(errno));
}

/* A run of an area's pages. */
struct run { size_t first, count; };

static struct run some(struct worker *me, struct area *area) {
    size_t first = below(me, area->pages), most = area->pages - first;
    return (struct run){first, 1 + below(me, most < RUN ? most : RUN)};
}

static void forget(struct area *area, struct run run) {
    memset(area->tag + run.first, 0, run.count * sizeof *area->tag);
    memset(area->lazy + run.first, 0, run.count);
}

/* Reads settle what was freed lazily: it holds that, or zeros, and goes on to after a write. */
static void settle(struct worker *me, struct area *area, size_t page) {
    if (!area->lazy[page]) return;
    check(me, area, page);
    put(me, area, page);
}

/* ---- steps ---- */

static void step_check(struct worker *me, struct area *area) {
    struct run run = some(me, area);
    for (size_t i = 0; i < run.count; i++) check(me, area, run.first + i);
}

static void step_put(struct worker *me, struct area *area) {
    struct run run = some(me, area);
    for (size_t i = 0; i < run.count; i++) {
        if (next(me) & 64) check(me, area, run.first + i);
        put(me, area, run.first + i);
    }
}

/* Out to a file from memory that may be out, and in again to other such memory, by read and write of several kinds. */
static void step_file(struct worker *me, struct area *area) {
    struct area *to = &me->area[below(me, AREAS)];
    size_t from = below(me, area->pages), into = below(me, to->pages);
    settle(me, area, from);
    int fd = next(me) & 64 ? me->file : me->direct;
    off_t at = (off_t)(me->index * 64 + below(me, 64)) * PAGE;
    need(me, pwrite(fd, page_of(area, from), PAGE, at) == PAGE, "pwrite");
    if (next(me) & 64) {
        need(me, pread(fd, page_of(to, into), PAGE, at) == PAGE, "pread");
    } else {
        struct iovec parts[2] = {{page_of(to, into), 512}, {page_of(to, into) + 512, PAGE - 512}};
        need(me, preadv(fd, parts, 2, at) == PAGE, "preadv");
    }
    to->tag[into] = area->tag[from], to->lazy[into] = 0;
    check(me, to, into);
    check(me, area, from);
}

static void step_pipe(struct worker *me, struct area *area) {
    struct area *to = &me->area[below(me, AREAS)];
    size_t from = below(me, area->pages), into = below(me, to->pages);
    settle(me, area, from);
    uint64_t tag = area->tag[from];
    if (next(me) & 64) {
        need(me, write(me->pipe[1], page_of(area, from), PAGE) == PAGE, "write to a pipe");
        need(me, read(me->pipe[0], page_of(to, into), PAGE) == PAGE, "read from a pipe");
    } else {
        struct iovec part = {page_of(area, from), PAGE};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        need(me, sendmsg(me->pair[0], &message, 0) == PAGE, "sendmsg");
        part.iov_base = page_of(to, into);
        need(me, recvmsg(me->pair[1], &message, MSG_WAITALL) == PAGE, "recvmsg");
    }
    to->tag[into] = tag, to->lazy[into] = 0;
    check(me, to, into);
}

/* The partner answers by the same words: both wait for memory and for each other. */
static void step_futex(struct worker *me, struct area *area) {
    struct meeting *meeting = me->meeting;
    (void)area;
    atomic_store(&meeting->turn, 1);
    syscall(SYS_futex, &meeting->turn, FUTEX_WAKE, 1, NULL, NULL, 0);
    while (atomic_load(&meeting->turn) == 1)
        if (syscall(SYS_futex, &meeting->turn, FUTEX_WAIT, 1, NULL, NULL, 0) < 0 && errno != EAGAIN && errno != EINTR) fail(me, "futex: %s", strerror(errno));
    pthread_mutex_lock(&meeting->mutex);
    uint64_t was = meeting->count++;
    pthread_cond_broadcast(&meeting->changed);
    while (meeting->count == was + 1) pthread_cond_wait(&meeting->changed, &meeting->mutex);
    if (meeting->count != was + 2) fail(me, "a count is %llu and not %llu", (unsigned long long)meeting->count, (unsigned long long)was + 2);
    for (size_t i = 0; i < 400; i++)
        if (meeting->rest[i] != i * 3) fail(me, "the meeting's word %zu is %llx", i, (unsigned long long)meeting->rest[i]);
    pthread_mutex_unlock(&meeting->mutex);
}

static void *partner(void *argument) {
    struct worker *of = argument;
    struct meeting *meeting = of->meeting;
    uint64_t seen = 0;
    for (;;) {
        while (atomic_load(&meeting->turn) != 1) {
            if (atomic_load(&meeting->ended)) return NULL;
            syscall(SYS_futex, &meeting->turn, FUTEX_WAIT, atomic_load(&meeting->turn) == 1 ? 2 : atomic_load(&meeting->turn), NULL, NULL, 0);
        }
        atomic_store(&meeting->turn, 0);
        syscall(SYS_futex, &meeting->turn, FUTEX_WAKE, 1, NULL, NULL, 0);
        pthread_mutex_lock(&meeting->mutex);
        while (meeting->count != seen + 1) pthread_cond_wait(&meeting->changed, &meeting->mutex);
        seen = ++meeting->count;
        pthread_cond_broadcast(&meeting->changed);
        pthread_mutex_unlock(&meeting->mutex);
    }
}

static void step_dontneed(struct worker *me, struct area *area) {
    struct run run = some(me, area);
    need(me, madvise(page_of(area, run.first), run.count * PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED");
    forget(area, run);
    for (size_t i = 0; i < run.count; i++) {
        if (next(me) & 64) check(me, area, run.first + i);
        if (next(me) & 64) put(me, area, run.first + i);
    }
}

static void step_free(struct worker *me, struct area *area) {
    struct run run = some(me, area);
    need(me, madvise(page_of(area, run.first), run.count * PAGE, MADV_FREE) == 0, "MADV_FREE");
    memset(area->lazy + run.first, 1, run.count);
    for (size_t i = 0; i < run.count; i++)
        if (next(me) & 64) settle(me, area, run.first + i);
}

static void step_advise(struct worker *me, struct area *area) {
    static const int advice[] = {MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_SEQUENTIAL, MADV_NORMAL};
    struct run run = some(me, area);
    int what = advice[below(me, sizeof advice / sizeof *advice)];
    /* What is lazily freed may be in the way of some; all that counts is that nothing changes. */
    area->split |= what != MADV_COLD && what != MADV_PAGEOUT;
    madvise(page_of(area, run.first), run.count * PAGE, what);
    check(me, area, run.first);
}

/* An area that can't be moved for it is several mappings moves by being copied. Where a whole one can't, that is counted: userswap should
 * have seen to it, and a program has to do without where it couldn't. */
static void copy(struct worker *me, struct area *area) {
    me->doing = "copying what mremap refused";
    if (!area->split) atomic_fetch_add(&refused, 1);
    char *to = map(me, NULL, area->pages, PROT_READ | PROT_WRITE);
    for (size_t page = 0; page < area->pages; page++) {
        check(me, area, page);
        memcpy(to + page * PAGE, page_of(area, page), PAGE);
        area->lazy[page] = 0;
        if (area->tag[page] && *(uint64_t *)(to + page * PAGE) != word(area->tag[page], 0)) area->tag[page] = 0;
    }
    munmap(area->at, area->pages * PAGE);
    area->at = to, area->split = 0;
    for (size_t page = 0; page < area->pages; page++) check(me, area, page);
}

/* Moves an area elsewhere, grows it or shrinks it. */
static void step_remap(struct worker *me, struct area *area) {
    size_t pages = area->pages;
    switch (below(me, 5)) {
    case 0: me->doing = "mremap to another size"; pages = 40 + below(me, MOST - 40); /* fall through */
    case 1: {
        char *now = mremap(area->at, area->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
        if (now == MAP_FAILED) return copy(me, area);
        area->at = now;
        break;
    }
    case 2: {
        me->doing = "mremap to another size and address";
        pages = 40 + below(me, MOST - 40);
        char *to = map(me, NULL, pages + 2, PROT_NONE);
        char *now = mremap(area->at, area->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to + PAGE);
        if (now == MAP_FAILED) {
            int error = errno;
            munmap(to, (pages + 2) * PAGE);
            errno = error;
            return copy(me, area);
        }
        need(me, now == to + PAGE, "mremap to an address");
        munmap(to, PAGE), munmap(to + (pages + 1) * PAGE, PAGE);
        area->at = now;
        break;
    }
    case 3: {
        me->doing = "mremap there and back";
        /* There, and back. */
        char *to = map(me, NULL, area->pages, PROT_READ | PROT_WRITE), *was = area->at;
        if (area->split) copy(me, area), was = area->at;
        if (mremap(was, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) return copy(me, area);
        area->at = to;
        check(me, area, below(me, pages));
        /* Another thread may have mapped something there since. */
        char *back = mmap(was, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (back != was) {
            if (back != MAP_FAILED) munmap(back, pages * PAGE);
            break;
        }
        need(me, mremap(to, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, was) == was, "mremap back");
        area->at = was;
        break;
    }
    default: {
        me->doing = "mremap that doesn't unmap";
        /* The pages go, the mapping stays and is empty. */
        char *to = map(me, NULL, area->pages, PROT_NONE), *was = area->at;
        if (area->split) copy(me, area), was = area->at;
        if (mremap(was, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) != to) return copy(me, area);
        area->at = was;
        uint64_t *empty = (void *)(was + below(me, pages) * PAGE);
        size_t at;
        if (!holds(empty, 0, &at)) fail(me, "what was left behind at %p has %llx at word %zu", (void *)empty, (unsigned long long)empty[at], at);
        area->at = to;
        munmap(was, pages * PAGE);
    }
    }
    if (pages > area->pages) forget(area, (struct run){area->pages, pages - area->pages});
    area->pages = pages;
    for (int i = 0; i < 8; i++) check(me, area, below(me, pages));
}

/* A part goes and comes again, empty, at once or later. */
static void step_unmap(struct worker *me, struct area *area) {
    struct run run = some(me, area);
    if (next(me) & 64) {
        map(me, page_of(area, run.first), run.count, PROT_READ | PROT_WRITE);
        area->split = 1;
        forget(area, run);
    } else {
        /* All of it: nobody may take a hole in the middle. */
        char *was = area->at;
        munmap(was, area->pages * PAGE);
        char *now = mmap(was, area->pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        area->at = now == was ? now : map(me, NULL, area->pages, PROT_READ | PROT_WRITE);
        if (now != was && now != MAP_FAILED) munmap(now, area->pages * PAGE);
        area->split = 0;
        forget(area, (struct run){0, area->pages});
        run.first = 0, run.count = area->pages;
    }
    for (size_t i = 0; i < run.count; i++)
        if (next(me) & 192) put(me, area, run.first + i);
    check(me, area, run.first);
}

/* A system call must not get through a guard, and what is behind it stays. */
static void step_protect(struct worker *me, struct area *area) {
    struct run run = some(me, area);
    char *at = page_of(area, run.first);
    area->split = 1;
    need(me, mprotect(at, run.count * PAGE, PROT_NONE) == 0, "mprotect");
    if (write(me->pipe[1], at + below(me, run.count) * PAGE, 16) != -1 || errno != EFAULT) fail(me, "a guard could be read");
    need(me, mprotect(at, run.count * PAGE, PROT_READ) == 0, "mprotect");
    check(me, area, run.first);
    need(me, mprotect(at, run.count * PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
    check(me, area, run.first + run.count - 1);
}

static void step_guard(struct worker *me, struct area *area) {
    static _Atomic int missing;
    struct run run = some(me, area);
    char *at = page_of(area, run.first);
    if (atomic_load(&missing)) return;
    if (run.count > 4) run.count = 4;
    if (madvise(at, run.count * PAGE, MADV_GUARD_INSTALL) != 0) {
        need(me, errno == EINVAL, "MADV_GUARD_INSTALL");
        atomic_store(&missing, 1);
        return;
    }
    if (write(me->pipe[1], at + below(me, run.count) * PAGE, 16) != -1 || errno != EFAULT) fail(me, "a guard could be read");
    forget(area, run);
    need(me, madvise(at, run.count * PAGE, MADV_GUARD_REMOVE) == 0, "MADV_GUARD_REMOVE");
    for (size_t i = 0; i < run.count; i++) check(me, area, run.first + i);
}

static void step_lock(struct worker *me, struct area *area) {
    struct run run = some(me, area);
    area->split = 1;
    if (mlock(page_of(area, run.first), run.count * PAGE) != 0) return;
    for (size_t i = 0; i < run.count; i++) check(me, area, run.first + i);
    munlock(page_of(area, run.first), run.count * PAGE);
}

/* ---- io_uring with fixed buffers: pages that are pinned ---- */

static void step_ring(struct worker *me, struct area *area) {
    enum { BUFFERS = 8 };
    static _Atomic int missing;
    if (atomic_load(&missing)) return;
    struct io_uring_params params = {0};
    int ring = (int)syscall(SYS_io_uring_setup, 16, &params);
    if (ring < 0) {
        atomic_store(&missing, 1);
        return;
    }
    size_t sizes[2] = {params.sq_off.array + params.sq_entries * 4, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe)};
    size_t size = sizes[0] > sizes[1] ? sizes[0] : sizes[1], entries = params.sq_entries * sizeof(struct io_uring_sqe);
    char *rings = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *sqes = mmap(NULL, entries, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
    need(me, rings != MAP_FAILED && (void *)sqes != MAP_FAILED && (params.features & IORING_FEAT_SINGLE_MMAP), "the ring's memory");
    _Atomic uint32_t *tail = (void *)(rings + params.sq_off.tail), *head = (void *)(rings + params.cq_off.head);
    uint32_t mask = *(uint32_t *)(rings + params.sq_off.ring_mask), *array = (void *)(rings + params.sq_off.array);
    struct io_uring_cqe *cqes = (void *)(rings + params.cq_off.cqes);

    struct iovec buffers[BUFFERS];
    size_t pages[BUFFERS];
    uint64_t written[BUFFERS] = {0};
    for (size_t i = 0; i < BUFFERS; i++) {
        pages[i] = i * (area->pages / BUFFERS);
        settle(me, area, pages[i]);
        buffers[i] = (struct iovec){page_of(area, pages[i]), PAGE};
    }
    need(me, syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, buffers, BUFFERS) == 0, "fixed buffers");
    for (int turn = 0; turn < 6; turn++) {
        uint32_t submitted = 0, again = 0;
        for (uint32_t i = 0; i < BUFFERS; i++) {
            /* Turns write to the file, and read what was written into the neighbour. */
            uint32_t buffer = turn & 1 ? (i + 1) % BUFFERS : i;
            uint32_t at = atomic_load(tail);
            struct io_uring_sqe *sqe = &sqes[at & mask];
            memset(sqe, 0, sizeof *sqe);
            sqe->opcode = turn & 1 ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED;
            sqe->fd = me->direct;
            sqe->addr = (uintptr_t)buffers[buffer].iov_base;
            sqe->len = PAGE;
            sqe->off = (uint64_t)(4096 + me->index * BUFFERS + (int)i) * PAGE;
            sqe->buf_index = (uint16_t)buffer;
            array[at & mask] = at & mask;
            atomic_store(tail, at + 1);
            submitted++;
        }
        uint32_t gone = 0;
        while (gone < submitted) {
            long got = syscall(SYS_io_uring_enter, ring, submitted - gone, 0, 0, NULL, 0);
            if (got < 0 && errno != EINTR && errno != EAGAIN) fail(me, "io_uring: %s", strerror(errno));
            if (got > 0) gone += (uint32_t)got;
        }
        for (uint32_t i = 0; i < submitted; i++) {
            while (atomic_load(head) == atomic_load((_Atomic uint32_t *)(rings + params.cq_off.tail)))
                if (syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 && errno != EINTR) fail(me, "io_uring: %s", strerror(errno));
            struct io_uring_cqe *cqe = &cqes[atomic_load(head) & *(uint32_t *)(rings + params.cq_off.ring_mask)];
            if (cqe->res == -ECANCELED || cqe->res == -EINTR || cqe->res == -EAGAIN) again = 1;
            else if (cqe->res != PAGE) fail(me, "fixed buffer: %d", cqe->res);
            atomic_fetch_add(head, 1);
        }
        /* A signal came between: once more from the start of the turn. */
        if (again) {
            turn--;
            continue;
        }
        if (turn & 1) {
            for (size_t i = 0; i < BUFFERS; i++) area->tag[pages[(i + 1) % BUFFERS]] = written[i];
        } else {
            for (size_t i = 0; i < BUFFERS; i++) written[i] = area->tag[pages[i]];
        }
        for (size_t i = 0; i < BUFFERS; i++) check(me, area, pages[i]);
        /* Pinned memory is written by the program, too. */
        put(me, area, pages[below(me, BUFFERS)]);
    }
    munmap(rings, size), munmap(sqes, entries);
    close(ring);
}

/* ---- children ---- */

static void change_and_check(struct worker *me) {
    check_all(me);
    for (int i = 0; i < 8; i++) {
        struct area *area = &me->area[below(me, AREAS)];
        put(me, area, below(me, area->pages));
        step_dontneed(me, area);
        step_remap(me, area);
    }
    check_all(me);
}

static void await(struct worker *me, pid_t child) {
    int status = 0;
    pid_t got;
    while ((got = waitpid(child, &status, 0)) < 0 && errno == EINTR) {}
    if (got != child || status) {
        atomic_store(&children_wrong, 1);
        fail(me, "child %d ended with %x", child, status);
    }
}

/* The child has the memory as it was, whatever either does from now on. */
static void step_fork(struct worker *me, struct area *area) {
    pid_t child = fork();
    need(me, child >= 0, "fork");
    if (child == 0) {
        me->doing = "in a child";
        change_and_check(me);
        if (next(me) & 64) {
            pid_t grandchild = fork();
            if (grandchild == 0) {
                me->doing = "in a grandchild";
                change_and_check(me);
                _exit(0);
            }
            await(me, grandchild);
        }
        _exit(0);
    }
    for (int i = 0; i < 16; i++) step_put(me, area), step_check(me, &me->area[below(me, AREAS)]);
    await(me, child);
}

/* The child's parent ends at once, and the child goes on. What became of it is read from a pipe in the end. */
static void step_daemonize(struct worker *me, struct area *area) {
    if (!daemonize) return;
    (void)area;
    if (atomic_fetch_add(&outliving, 1) >= 6) {
        atomic_fetch_sub(&outliving, 1);
        return;
    }
    int said[2];
    need(me, pipe2(said, O_CLOEXEC) == 0, "pipe");
    pid_t child = fork();
    need(me, child >= 0, "fork");
    if (child == 0) {
        if (fork() == 0) {
            setsid();
            me->doing = "in a daemon";
            usleep((useconds_t)below(me, 30000));
            change_and_check(me);
            if (write(said[1], "+", 1) != 1) _exit(1);
            _exit(0);
        }
        _exit(0);
    }
    close(said[1]);
    await(me, child);
    for (int i = 0; i < 16; i++) step_put(me, &me->area[below(me, AREAS)]), step_check(me, &me->area[below(me, AREAS)]);
    char answer = 0;
    ssize_t got;
    while ((got = read(said[0], &answer, 1)) < 0 && errno == EINTR) {}
    if (got != 1 || answer != '+') fail(me, "a daemon ended without a word");
    close(said[0]);
    atomic_fetch_sub(&outliving, 1);
}

static void step_spawn(struct worker *me, struct area *area) {
    extern char **environ;
    (void)area;
    pid_t child;
    char *words[] = {"/bin/true", NULL};
    int error = posix_spawn(&child, words[0], NULL, NULL, words, environ);
    if (error) fail(me, "posix_spawn: %s", strerror(error));
    await(me, child);
}

/* Memory that a child is to find empty. */
static void step_wipe(struct worker *me, struct area *area) {
    (void)area;
    enum { PAGES = 40 };
    struct area own = {.pages = PAGES};
    own.at = map(me, NULL, PAGES, PROT_READ | PROT_WRITE);
    for (size_t page = 0; page < PAGES; page++) put(me, &own, page);
    sched_yield();
    need(me, madvise(own.at, PAGES * PAGE, MADV_WIPEONFORK) == 0, "MADV_WIPEONFORK");
    for (size_t page = 0; page < PAGES; page++) check(me, &own, page);
    pid_t child = fork();
    need(me, child >= 0, "fork");
    if (child == 0) {
        me->doing = "in a child that is to find nothing";
        forget(&own, (struct run){0, PAGES});
        for (size_t page = 0; page < PAGES; page++) check(me, &own, page);
        _exit(0);
    }
    await(me, child);
    for (size_t page = 0; page < PAGES; page++) check(me, &own, page);
    munmap(own.at, PAGES * PAGE);
}

/* ---- all of it ---- */

static const struct {
    const char *name;
    void (*step)(struct worker *, struct area *);
    unsigned weight;
} steps[] = {
    {"checking", step_check, 200},   {"writing", step_put, 200},      {"a file", step_file, 100},          {"a pipe", step_pipe, 100},
    {"a futex", step_futex, 60},     {"MADV_DONTNEED", step_dontneed, 60}, {"MADV_FREE", step_free, 60},   {"advice", step_advise, 40},
    {"mremap", step_remap, 60},      {"munmap", step_unmap, 40},      {"mprotect", step_protect, 40},      {"a guard", step_guard, 6},
    {"mlock", step_lock, 20},        {"io_uring", step_ring, 12},     {"fork", step_fork, 4},              {"daemonizing", step_daemonize, 3},
    {"posix_spawn", step_spawn, 3},  {"MADV_WIPEONFORK", step_wipe, 2},
};
enum { KINDS = sizeof steps / sizeof *steps };

static void *work(void *argument) {
    struct worker *me = argument;
    unsigned all = 0;
    for (size_t i = 0; i < KINDS; i++) all += steps[i].weight;
    for (; me->steps > 0; me->steps--) {
        unsigned pick = (unsigned)below(me, all);
        size_t kind = 0;
        while (pick >= steps[kind].weight) pick -= steps[kind++].weight;
        me->doing = steps[kind].name;
        me->done[kind]++;
        steps[kind].step(me, &me->area[below(me, AREAS)]);
    }
    me->doing = "at the end";
    check_all(me);
    atomic_store(&me->meeting->ended, 1);
    atomic_store(&me->meeting->turn, 3);
    syscall(SYS_futex, &me->meeting->turn, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    pthread_join(me->partner, NULL);
    return NULL;
}

static void start(struct worker *me, int index, uint64_t seed, long count) {
    *me = (struct worker){.index = index, .random = (seed + (uint64_t)index + 1) * UINT64_C(0x9e3779b97f4a7c15), .steps = count};
    me->file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    me->direct = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT, 0600);
    if (me->direct < 0) me->direct = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    need(me, me->file >= 0 && me->direct >= 0, path);
    need(me, pipe2(me->pipe, O_CLOEXEC) == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, me->pair) == 0, "pipe");
    for (int a = 0; a < AREAS; a++) {
        me->area[a].pages = 64 + below(me, MOST - 64);
        me->area[a].at = map(me, NULL, me->area[a].pages, PROT_READ | PROT_WRITE);
        for (size_t page = 0; page < me->area[a].pages; page++) put(me, &me->area[a], page);
    }
    /* A mapping large enough to be looked after. */
    me->meeting = map(me, NULL, 64, PROT_READ | PROT_WRITE);
    memset((char *)me->meeting + PAGE, 1, 63 * PAGE);
    for (size_t i = 0; i < 400; i++) me->meeting->rest[i] = i * 3;
    pthread_mutex_init(&me->meeting->mutex, NULL);
    pthread_cond_init(&me->meeting->changed, NULL);
    need(me, pthread_create(&me->partner, NULL, partner, me) == 0, "a thread");
}

static void nothing(int signal) { (void)signal; }

/* A thread that waits for a page is interrupted and asks again. */
static void *pester(void *argument) {
    struct worker *workers = argument;
    for (unsigned turn = 0; !atomic_load(&over); turn++) {
        struct timespec moment = {0, 500000};
        nanosleep(&moment, NULL);
        for (int i = 0; workers[i].thread; i++) pthread_kill(workers[i].thread, SIGUSR1);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    uint64_t seed = strtoull(argv[1], NULL, 10);
    threads = atoi(argv[2]);
    long count = atol(argv[3]);
    path = argv[4];
    daemonize = argc > 5 && !strcmp(argv[5], "daemonize");
    struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    struct sigaction crash = {.sa_sigaction = crashed, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &crash, NULL), sigaction(SIGBUS, &crash, NULL);

    struct worker *workers = all = calloc((size_t)threads + 1, sizeof *workers);
    for (int i = 0; i < threads; i++) start(&workers[i], i, seed, count);
    for (int i = 0; i < threads; i++) need(&workers[i], pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0, "a thread");
    pthread_t pest;
    need(NULL, pthread_create(&pest, NULL, pester, workers) == 0, "a thread");
    /* Pestered threads must still be there. */
    while (!atomic_load(&over)) {
        int left = 0;
        for (int i = 0; i < threads; i++) left += !atomic_load(&workers[i].meeting->ended);
        if (!left) atomic_store(&over, 1);
        usleep(1000);
    }
    pthread_join(pest, NULL);
    for (int i = 0; i < threads; i++) pthread_join(workers[i].thread, NULL);
    for (size_t kind = 0; kind < KINDS; kind++) {
        uint64_t done = 0;
        for (int i = 0; i < threads; i++) done += workers[i].done[kind];
        printf("%s %llu\n", steps[kind].name, (unsigned long long)done);
    }
    printf("mremap refused %ld\n", atomic_load(&refused));
    unlink(path);
    return 0;
}
