/* Fills so many MiB with a pattern and says "ready". Then, told on standard input:
 *   check   sees whether the pattern is still there
 *   fork    has a child see, and waits for it
 *   paint   maps more and fills a quarter of it
 *   outgrow makes that twice as large and sees whether it is what it was
 *   follow  has a child answer from now on, and waits for its end
 *   abandon has a child end at once, without a look at anything
 *   quarter sees whether the pattern is in the first quarter
 *   churn   changes all of it, forth and back
 *   scatter puts numbers into as many mappings as it may have, or 50,000 with others between them
 *   gather  sees whether they are there
 * and answers with the word and "ed". Ends well at the end of its input, or with 1 where the pattern isn't. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t *words;
static size_t count;

static char *painted;
enum { PAINTED = 16 << 20, PAINT = 1 << 20 };
static size_t large = PAINTED;


/* Every page another one, and each compresses well. */
static uint64_t pattern(size_t at) { return (at & 7 ? at >> 6 : at) * UINT64_C(0x9e3779b97f4a7c15); }

static void check(size_t end) {
    for (size_t at = 0; at < end; at++)
        if (words[at] != pattern(at)) {
            printf("word %zu is %llx\n", at, (unsigned long long)words[at]);
            fflush(stdout);
            _exit(1);
        }
}

static int enlarge(void) {
    painted = mremap(painted, large, large * 2, MREMAP_MAYMOVE);
    if (painted == MAP_FAILED) return 0;
    large *= 2;
    for (size_t at = 0; at < large; at++)
        if (painted[at] != (at < PAINT ? 'p' : 0)) return 0;
    return 1;
}

static void flip(void) {
    for (size_t at = 0; at < count; at++) words[at] = ~words[at];
}

enum { APART = 128 << 10 };
static char *scattered;
static size_t mappings = 50000;

static int scatter(void) {
    FILE *most = fopen("/proc/sys/vm/max_map_count", "r");
    size_t limit = 65530;
    if (most && fscanf(most, "%zu", &limit) != 1) limit = 65530;
    if (most) fclose(most);
    /* Two for each, and room for others. */
    if (mappings > limit / 16 * 7) mappings = limit / 16 * 7;
    scattered = mmap(NULL, mappings * 2 * APART, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (scattered == MAP_FAILED) return 0;
    for (size_t at = 0; at < mappings; at++) {
        char *mapping = scattered + at * 2 * APART;
        if (mprotect(mapping, APART, PROT_READ | PROT_WRITE)) return 0;
        *(size_t *)mapping = at + 1;
    }
    return 1;
}

static int gather(void) {
    for (size_t at = 0; at < mappings; at++)
        if (*(size_t *)(scattered + at * 2 * APART) != at + 1) return 0;
    return 1;
}

int main(int argc, char **argv) {
    count = (argc > 1 ? strtoul(argv[1], NULL, 10) : 1) * (1 << 20) / sizeof *words;
    words = malloc(count * sizeof *words);
    if (!words) return 2;
    for (size_t at = 0; at < count; at++) words[at] = pattern(at);
    char line[64];
    setvbuf(stdin, NULL, _IONBF, 0);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "check")) {
            check(count);
        } else if (!strcmp(line, "quarter")) {
            check(count / 4);
        } else if (!strcmp(line, "churn")) {
            flip();
            flip();
        } else if (!strcmp(line, "fork") || !strcmp(line, "abandon")) {
            pid_t child = fork();
            int status = 0;
            if (child == 0) {
                if (*line == 'f') check(count);
                _exit(0);
            }
            if (waitpid(child, &status, 0) != child || status != 0) return 3;
        } else if (!strcmp(line, "paint")) {
            /* Apart from other mappings, by more than a stack's guard. */
            painted = mmap(NULL, PAINTED * 3, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (painted == MAP_FAILED || mprotect(painted += PAINTED, PAINTED, PROT_READ | PROT_WRITE)) return 2;
            memset(painted, 'p', PAINT);
        } else if (!strcmp(line, "scatter") || !strcmp(line, "gather")) {
            if (*line == 's' ? !scatter() : !gather()) return 3;
        } else if (!strcmp(line, "outgrow")) {
            if (!enlarge()) return 3;
        } else if (!strcmp(line, "follow")) {
            pid_t child = fork();
            int status = 0;
            if (child && (waitpid(child, &status, 0) != child || status != 0)) return 3;
            if (child) return 0;
        } else {
            return 4;
        }
        printf("%sed\n", line);
        fflush(stdout);
    }
    return 0;
}
