/* remapped ROUNDS: moves ranges of many mappings, the last of which is watched (by this program's own userfaultfd), to a fixed address, again and
 * again, while a neighbour maps a page wherever one is free, as a rule where the range was a moment ago. The kernel refuses such a range halfway,
 * with the first mappings moved. Both must find what they wrote. Ends with 0, or says what is wrong and ends with 1; 2 where there is no
 * userfaultfd; 3 if no range was ever moved whole. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 16, FILLING = 4000, PATIENCE = 6000 };

static _Atomic int over;

static char *map(size_t pages, int access) {
    char *at = mmap(NULL, pages * PAGE, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) perror("mmap"), exit(1);
    return at;
}

static void wrong(const char *whose, long round, int page) {
    printf("the %s's page %d of round %ld\n", whose, page, round);
    exit(1);
}

static void *neighbour(void *unused) {
    (void)unused;
    for (long round = 0; !over; round++) {
        volatile long *page = (volatile long *)map(1, PROT_READ | PROT_WRITE);
        *page = round;
        for (volatile int i = 0; i < 300; i++) {}
        unsigned char there;
        if (mincore((void *)page, PAGE, &there) || *page != round) wrong("neighbour", round, 0);
        munmap((void *)page, PAGE);
    }
    return NULL;
}

/* Whether a range was moved, whole. */
static int move(int watch, long round) {
    /* A page without access on both sides, so that nothing near is one mapping with it. */
    char *from = map(PAGES + 2, PROT_NONE) + PAGE;
    for (int i = 0; i < PAGES; i++) {
        mprotect(from + i * PAGE, PAGE, PROT_READ | PROT_WRITE | (i & 1 ? 0 : PROT_EXEC));
        *(long *)(from + i * PAGE) = round * PAGES + i;
    }
    struct uffdio_register last = {
        .range = {(uintptr_t)from + (PAGES - 1) * PAGE, PAGE},
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };
    if (ioctl(watch, UFFDIO_REGISTER, &last) && errno != EBUSY) perror("UFFDIO_REGISTER"), exit(2);
    char *to = map(PAGES + 2, PROT_NONE) + PAGE;
    char *now = mremap(from, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    int moved = now == to;
    for (int i = 0; moved && i < PAGES; i++)
        if (*(long *)(now + i * PAGE) != round * PAGES + i) wrong("range", round, i);
    /* Where the range was is the neighbour's by now, perhaps. What is left of one that was refused stays. */
    if (moved) munmap(to - PAGE, (PAGES + 2) * PAGE);
    munmap(from - PAGE, PAGE);
    munmap(from + PAGES * PAGE, PAGE);
    return moved;
}

int main(int count, char **words) {
    long rounds = count > 1 ? atol(words[1]) : 1000, moved = 0, refused = 0;
    int watch = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API};
    if (watch < 0 || ioctl(watch, UFFDIO_API, &api)) perror("userfaultfd"), exit(2);
    /* No hole above is left for the neighbour to be in. */
    for (int i = 0; i < FILLING; i++) map(1, PROT_NONE);
    pthread_t other;
    /* Alone until somebody sees to it that ranges are moved whole. */
    while (!move(watch, 0)) {
        if (++refused == PATIENCE) return 3;
        usleep(10000);
    }
    pthread_create(&other, NULL, neighbour, NULL);
    while (moved < rounds)
        if (move(watch, ++moved) == 0) printf("refused: round %ld\n", moved), exit(1);
    over = 1;
    pthread_join(other, NULL);
    puts("all moved");
    return 0;
}
