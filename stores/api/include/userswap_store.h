/* A store for userswap as a shared library: pages that left a program's memory come in, and go back when the program touches them.
 *
 *     static const struct userswap_store_plugin plugin = {
 *         .abi = USERSWAP_STORE_ABI, .size = sizeof plugin, .name = "mine",
 *         .open = mine_open, .close = mine_close, .put = mine_put, .get = mine_get, .remove = mine_remove, .stats = mine_stats,
 *     };
 *     const struct userswap_store_plugin *userswap_store_plugin(uint32_t host_abi)
 *     {
 *         return &plugin;
 *     }
 *
 * Build it with `cc -shared -fPIC -o mine.so mine.c`, try it with `userswap store check plugin:./mine.so`, use it with
 * `userswap run --store plugin:/path/to/mine.so`.
 *
 * THREADS. After `open` has returned, `put`, `put_batch`, `get`, `remove`, `stats` and `maintain` are called by any thread, by several at once, and
 * each alongside every other. `open` and `close` are called once for each store, with nothing else of that store under way. There may be several stores.
 * `remove`, `stats`, and `get` where the store doesn't say USERSWAP_STORE_GET_MAY_WAIT, are called by threads that serve page faults: they may take
 * short locks, and wait for no device, no peer, and no lock that is held over such waiting. No function may call back into userswap, fork, or leave by
 * longjmp or an exception. A library stays loaded until the process ends.
 *
 * MEMORY. Whatever a pointer leads to belongs to the caller and may be used until the function returns, not longer. Nothing is allocated by one side
 * and freed by the other. No pointer is null, but where it says so.
 *
 * OBJECTS. A page that was put is an object with a number, an id, that the store chooses: an index, an address, whatever finds it again. It is the store's until it
 * is removed. Two objects that are there at the same time have two ids. userswap asks for ids it was given and hasn't removed, and for no others; it
 * removes each once, and never while a `get` of it is under way. After `remove` has been called the id may be given to another object.
 *
 * WHAT IF IT IS WRONG. userswap keeps a checksum over each page and its key, and its own list of the ids that are in use. A page that comes back changed, short, or as
 * another's is not given to the program: the thread that touches it gets SIGBUS. A put with an answer that makes no sense is taken as failed, and the page stays
 * in memory. Other pages are not concerned. What can't be defended against: code in the library runs in the same process, with all its rights.
 *
 * VERSIONS. USERSWAP_STORE_ABI changes when something that is here changes its meaning or its place. Functions may be added at the end of
 * `struct userswap_store_plugin` without that: `size` says how many of them there are. userswap refuses other versions, with a sentence.
 */
#ifndef USERSWAP_STORE_H
#define USERSWAP_STORE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define USERSWAP_STORE_ABI 1u

/* What a function answers. Any other number is taken as a failure. */
enum userswap_store_answer {
    USERSWAP_STORE_OK = 0,
    USERSWAP_STORE_FULL = 1,      /* put: no room now; later, perhaps */
    USERSWAP_STORE_NOT_FOUND = 2, /* get: there is no such object, or it has another key */
    USERSWAP_STORE_DAMAGED = 3,   /* get: it is there, and isn't what was put */
    USERSWAP_STORE_AGAIN = 4,     /* it failed, nothing is lost, and trying again may help */
    USERSWAP_STORE_FAILED = 5,    /* it failed, and would again */
    USERSWAP_STORE_CLOSED = 6,    /* what was behind the store is gone */
    USERSWAP_STORE_REFUSED = 7    /* open: an option that makes no sense, a page size that doesn't fit */
};

/* Room for a sentence that says why it wasn't USERSWAP_STORE_OK, for people: UTF-8, ended by a 0. It is "" when the function is called, and may stay so. */
#define USERSWAP_STORE_WHY 256u

/* Which page of whom. A store may look at it, and may do without. */
struct userswap_store_key {
    uint64_t owner;      /* a number that never becomes another's */
    uint64_t page;       /* below 2 to the 44 */
    uint32_t generation; /* counted up each time the page is put */
    uint32_t reserved;   /* 0 */
};

/* What is asked of a store. */
struct userswap_store_config {
    uint32_t size;       /* of this struct */
    uint32_t reserved;   /* 0 */
    uint64_t page_size;  /* bytes of every page, from 512 to 65536, a power of two */
    uint64_t capacity;   /* the most the store may hold of its medium, in bytes; 0: as much as it likes */
    const char *options; /* what stands behind the ? of `plugin:/path.so?key=value&key=value`, without capacity; "" if there is nothing */
};

/* Flags of a store. Bits that aren't here are refused. */
#define USERSWAP_STORE_GET_MAY_WAIT 1u         /* get waits for a device or a peer: it is called by threads made for that */
#define USERSWAP_STORE_ON_DEVICE 2u            /* the medium is a device: capacity is of device_bytes, not of memory_bytes */
#define USERSWAP_STORE_ENCRYPTS 4u             /* what is stored can't be read without a key */
#define USERSWAP_STORE_COUNTS_SAME_FILLED 8u   /* same_filled_pages of the stats is counted */

/* What a store is. All 0 when open is called. */
struct userswap_store_capabilities {
    uint32_t size;      /* of this struct, set by userswap */
    uint32_t flags;
    uint64_t capacity;  /* the most it will hold of its medium, in bytes; 0: no limit. At most what was asked for, if something was */
    uint64_t max_batch; /* the most pages a put_batch takes; 0: 1024 */
};

/* What a store holds now, in bytes and pages. All 0 when stats is called. With no other function under way, the figures are exact. */
struct userswap_store_stats {
    uint32_t size;              /* of this struct, set by userswap */
    uint32_t reserved;          /* 0 */
    uint64_t stored_bytes;      /* the objects, headers included; 0 for a store without objects */
    uint64_t memory_bytes;      /* all memory that it has for them, with rounding, free space, index */
    uint64_t device_bytes;      /* what it takes of a file or a device */
    uint64_t same_filled_pages; /* stored pages that are one word repeated and take no object */
    uint64_t incompressible_pages; /* stored pages that are kept as they came, since compressing them didn't pay */
};

/* What maintain did. All 0 when it is called. */
struct userswap_store_maintained {
    uint32_t size;           /* of this struct, set by userswap */
    uint32_t more;           /* not 0: there is more to do */
    uint64_t moved_bytes;    /* of objects moved, recompressed or written */
    uint64_t released_bytes; /* of memory given back */
};

/* A plug-in. It stays where it is, as it is, until the process ends. */
struct userswap_store_plugin {
    uint32_t abi;     /* USERSWAP_STORE_ABI. These first eight bytes are the same in all versions */
    uint32_t size;    /* sizeof(struct userswap_store_plugin) */
    const char *name; /* a short one, for tables and logs */

    /* Makes a store, and leaves in *store what the other functions are to be given. */
    int32_t (*open)(const struct userswap_store_config *config, struct userswap_store_capabilities *capabilities, void **store, char *why);

    /* Ends it, and frees all that it has. */
    void (*close)(void *store);

    /* Stores a page, which is copied, and leaves the object's id in *id. If it fails, nothing is stored. */
    int32_t (*put)(void *store, const struct userswap_store_key *key, const uint8_t *page, uint64_t *id, char *why);

    /* Stores so many pages, pages[i] under keys[i] with its id in ids[i], or none of them. May be null: then each is put by itself. */
    int32_t (*put_batch)(void *store, uint64_t count, const struct userswap_store_key *keys, const uint8_t *const *pages, uint64_t *ids, char *why);

    /* Copies an object's page to `page`, which has room for one page and no more, and leaves in *length how many bytes that were. The object stays. */
    int32_t (*get)(void *store, uint64_t id, const struct userswap_store_key *key, uint8_t *page, uint64_t *length, char *why);

    /* Forgets an object. */
    void (*remove)(void *store, uint64_t id);

    /* Says what the store holds. */
    void (*stats)(void *store, struct userswap_store_stats *stats);

    /* Works in the background: compacts, gives memory back, writes out; at most about so many bytes. May wait. May be null. */
    void (*maintain)(void *store, uint64_t bytes, struct userswap_store_maintained *done);
};

/* The one symbol a plug-in has to have. host_abi is the newest version userswap speaks; a plug-in that speaks only others may answer null. */
const struct userswap_store_plugin *userswap_store_plugin(uint32_t host_abi);

#ifdef __cplusplus
}
#endif

#endif
