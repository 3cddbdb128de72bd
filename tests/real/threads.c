/* threads COUNT: creates so many threads, some at a time, on stacks of every origin, and joins or detaches them. Each checks what it was given and
 * leaves something behind, which is checked, too. Ends with 0, or says what is wrong and ends with 1; a lost join is a hang. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { TOGETHER = 8, STACK = 256 << 10, LEFT = 64 << 10 };

struct job {
    uint64_t seed;
    int detached;
    unsigned char *left;
};

static _Atomic long detached_left;
static __thread uint64_t own[600];

static void wrong(const char *what) {
    fprintf(stderr, "%s\n", what);
    _exit(1);
}

static void *run(void *argument) {
    struct job *job = argument;
    unsigned char local[8192];
    memset(local, (int)job->seed, sizeof local);
    for (int i = 0; i < 600; i++) own[i] = job->seed * (uint64_t)i;
    job->left = malloc(LEFT);
    memset(job->left, (int)job->seed, LEFT);
    if (job->seed % 3 == 0) usleep(2000);
    else sched_yield();
    for (size_t i = 0; i < sizeof local; i++)
        if (local[i] != (unsigned char)job->seed) wrong("a thread's stack is wrong");
    for (int i = 0; i < 600; i++)
        if (own[i] != job->seed * (uint64_t)i) wrong("a thread's own memory is wrong");
    if (job->detached) {
        free(job->left);
        free(job);
        atomic_fetch_sub(&detached_left, 1);
    }
    return job;
}

int main(int argc, char **argv) {
    long count = argc > 1 ? atol(argv[1]) : 100;
    /* Memory of the program's that may be moved, and that stacks are put in: no guard is below them. */
    char *stacks = mmap(NULL, (size_t)TOGETHER * STACK * 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stacks == MAP_FAILED) return 2;
    memset(stacks, 7, (size_t)TOGETHER * STACK * 2);
    uint64_t seed = 0;
    for (long done = 0; done < count; done += TOGETHER) {
        pthread_t thread[TOGETHER];
        struct job *job[TOGETHER];
        for (int i = 0; i < TOGETHER; i++) {
            job[i] = malloc(sizeof *job[i]);
            *job[i] = (struct job){.seed = ++seed, .detached = i % 4 == 3};
            pthread_attr_t attributes;
            pthread_attr_init(&attributes);
            if (i % 4 == 1) pthread_attr_setstack(&attributes, stacks + (size_t)(2 * i + 1) * STACK, STACK);
            if (i % 4 == 2) pthread_attr_setstacksize(&attributes, (size_t)STACK << (seed % 5)), pthread_attr_setguardsize(&attributes, seed % 2 ? 4096 : 0);
            if (job[i]->detached) pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED), atomic_fetch_add(&detached_left, 1);
            if (pthread_create(&thread[i], &attributes, run, job[i])) wrong("no thread can be made");
            pthread_attr_destroy(&attributes);
        }
        for (int i = 0; i < TOGETHER; i++) {
            if (i % 4 == 3) continue;
            void *ended = NULL;
            if (pthread_join(thread[i], &ended) || ended != job[i]) wrong("a join failed");
            for (int at = 0; at < LEFT; at++)
                if (job[i]->left[at] != (unsigned char)job[i]->seed) wrong("what a thread left is wrong");
            free(job[i]->left);
            free(job[i]);
        }
        for (int i = 1; i < TOGETHER; i += 4)
            for (size_t at = 0; at < STACK; at += 512)
                if (stacks[(size_t)(2 * i) * STACK + at] != 7) wrong("memory beside a stack is wrong");
    }
    while (atomic_load(&detached_left)) usleep(1000);
    puts("joined");
    return 0;
}
