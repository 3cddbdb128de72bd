/* Regions of memory that may be larger than the machine has: what isn't used for a while is kept compressed, and comes back when touched.
 *
 *     userswap_region *region = userswap_region_new(1ull << 30, "ram:lz4", 64ull << 20, USERSWAP_INLINE);
 *     if (!region) errx(1, "%s", userswap_error());
 *     char *bytes = userswap_region_data(region);
 *
 * Link with -luserswap_c. All functions may be called by any thread at any time, but for userswap_region_free, and for userswap_region_discard
 * while others use those bytes. None may be called by a signal handler; touching the memory is allowed there.
 *
 * A SYSTEM CALL WHOSE BUFFER IS OUT FAILS WITH EFAULT in a region made with USERSWAP_INLINE: pin the range for the time of the call. That goes for
 * read(2) and write(2), and for whatever in a library makes such calls.
 *
 * With USERSWAP_INLINE no thread may block SIGBUS, who installs a handler for it later passes on what isn't theirs, and the range is never given to
 * mmap, munmap, mremap, madvise or mprotect. Forked children don't have the region.
 */
#ifndef USERSWAP_H
#define USERSWAP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct userswap_region userswap_region;
typedef struct userswap_pin userswap_pin;

/* The thread that touches a page that is out brings it back itself, in its handler of SIGBUS; else threads of the library do. */
#define USERSWAP_INLINE 1u

typedef enum userswap_expected {
    USERSWAP_UNKNOWN = 0,    /* fault-around finds out */
    USERSWAP_SEQUENTIAL = 1, /* from low addresses to high ones */
    USERSWAP_RANDOM = 2,     /* in no order */
    USERSWAP_WILL_NEED = 3   /* brought in now */
} userswap_expected;

typedef struct userswap_usage {
    uint64_t resident_bytes; /* in memory */
    uint64_t out_bytes;      /* out */
} userswap_usage;

/* A region of `bytes`, all zeros. `store` says where pages go: "ram:lz4". At most about `limit` bytes stay in memory; 0: all that
 * userswap_region_evict leaves. NULL on failure. */
userswap_region *userswap_region_new(uint64_t bytes, const char *store, uint64_t limit, unsigned flags);
/* Nobody touches the memory any more, and every pin was freed. NULL is nothing. */
void userswap_region_free(userswap_region *region);

void *userswap_region_data(const userswap_region *region);
size_t userswap_region_len(const userswap_region *region);

/* These take a range as bytes from the start of the region, and whole pages of it. They return pages, or 0, or -1 on failure. */
int64_t userswap_region_evict(const userswap_region *region, size_t offset, size_t len);
int64_t userswap_region_bring_in(const userswap_region *region, size_t offset, size_t len);
int userswap_region_advise(const userswap_region *region, size_t offset, size_t len, userswap_expected expected);
/* The range reads as zeros. Nobody else uses it meanwhile. */
int userswap_region_discard(const userswap_region *region, size_t offset, size_t len);

/* Brings a range in and keeps it there until the pin is freed. NULL on failure. */
userswap_pin *userswap_region_pin(const userswap_region *region, size_t offset, size_t len);
void userswap_pin_free(userswap_pin *pin);

void userswap_region_usage(const userswap_region *region, userswap_usage *usage);

/* What went wrong last in this thread. Valid until something else does. */
const char *userswap_error(void);

#ifdef __cplusplus
}
#endif

#endif
