/* Sorts more numbers than it keeps in memory, and looks whether they are sorted. */
#include "userswap.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, userswap_error());
    exit(1);
}

/* Merges two sorted halves of `count` numbers by way of `room`. */
static void merge(uint32_t *numbers, uint32_t *room, size_t count) {
    size_t left = 0, half = count / 2, right = half;
    for (size_t at = 0; at < count; at++) {
        if (right == count || (left < half && numbers[left] <= numbers[right])) {
            room[at] = numbers[left++];
        } else {
            room[at] = numbers[right++];
        }
    }
}

int main(void) {
    const size_t bytes = 32u << 20, limit = 8u << 20, count = bytes / 2 / sizeof(uint32_t);
    userswap_region *region = userswap_region_new(bytes, "ram:lz4", limit, USERSWAP_INLINE);
    if (!region) {
        printf("SKIPPED: %s\n", userswap_error());
        return 0;
    }
    uint32_t *numbers = userswap_region_data(region), *room = numbers + count, state = 1;
    for (size_t at = 0; at < count; at++) {
        state = state * 1664525u + 1013904223u;
        numbers[at] = state >> 8;
    }
    qsort(numbers, count / 2, sizeof *numbers, by_value);
    qsort(numbers + count / 2, count / 2, sizeof *numbers, by_value);
    merge(numbers, room, count);
    for (size_t at = 1; at < count; at++) {
        if (room[at - 1] > room[at]) {
            fprintf(stderr, "not sorted at %zu\n", at);
            return 1;
        }
    }
    userswap_usage usage;
    userswap_region_usage(region, &usage);
    if (usage.resident_bytes > limit + (1u << 20)) {
        fprintf(stderr, "%llu bytes in memory\n", (unsigned long long)usage.resident_bytes);
        return 1;
    }
    /* A system call needs its buffer to be there. */
    int pipes[2];
    if (pipe(pipes) != 0 || userswap_region_evict(region, 0, 4096) < 0) fail("evicting");
    if (write(pipes[1], numbers, 16) != -1 || errno != EFAULT) fail("a page that is out was written from");
    userswap_pin *pin = userswap_region_pin(region, 0, 4096);
    if (!pin) fail("pinning");
    if (write(pipes[1], numbers, 16) != 16) fail("a pinned page was not written from");
    userswap_pin_free(pin);
    if (userswap_region_discard(region, 0, bytes / 2) != 0) fail("discarding");
    if (numbers[0] != 0 || numbers[count - 1] != 0) fail("what was discarded is there");
    userswap_region_free(region);
    printf("sorted %zu numbers\n", count);
    return 0;
}
