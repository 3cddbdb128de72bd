/* A store as a plug-in, in C: each page is an object got from malloc, and the object's address is its id.
 *
 *     cc -std=c11 -O2 -shared -fPIC -I stores/api/include -o store.so examples/store-c/store.c
 *     userswap store check plugin:./store.so
 *
 * A page that is one word repeated takes no memory but the object's head. There is no lock in it: userswap asks for ids that are in use alone, and
 * removes none while it is being got; what is left to count is counted by atomics.
 */
#include "userswap_store.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct store {
    size_t page_size;
    uint64_t capacity; /* 0: none */
    atomic_uint_least64_t objects, filled, memory;
};

struct object {
    struct userswap_store_key key;
    uint8_t word[8]; /* of a page that is nothing else */
    int is_filled;
    uint8_t page[]; /* unless it is filled */
};

/* What malloc takes beside. */
enum { HEAD = 16 };

static int32_t store_open(const struct userswap_store_config *config, struct userswap_store_capabilities *capabilities,
                          void **store, char *why)
{
    if (config->options[0]) {
        snprintf(why, USERSWAP_STORE_WHY, "there are no options, and this is one: %.100s", config->options);
        return USERSWAP_STORE_REFUSED;
    }
    struct store *self = calloc(1, sizeof *self);
    if (!self)
        return USERSWAP_STORE_AGAIN;
    self->page_size = config->page_size;
    self->capacity = config->capacity;
    capabilities->flags = USERSWAP_STORE_COUNTS_SAME_FILLED;
    capabilities->capacity = config->capacity;
    *store = self;
    return USERSWAP_STORE_OK;
}

static uint64_t size_of(const struct store *self, int is_filled)
{
    return HEAD + sizeof(struct object) + (is_filled ? 0 : self->page_size);
}

static void store_remove(void *store, uint64_t id)
{
    struct store *self = store;
    struct object *object = (struct object *)(uintptr_t)id;
    atomic_fetch_sub(&self->memory, size_of(self, object->is_filled));
    atomic_fetch_sub(&self->filled, object->is_filled);
    atomic_fetch_sub(&self->objects, 1);
    free(object);
}

static int32_t store_put(void *store, const struct userswap_store_key *key, const uint8_t *page, uint64_t *id, char *why)
{
    struct store *self = store;
    int is_filled = memcmp(page, page + 8, self->page_size - 8) == 0;
    uint64_t size = size_of(self, is_filled);
    /* Room first, so that two threads can't both have the last of it. */
    if (atomic_fetch_add(&self->memory, size) + size > self->capacity && self->capacity) {
        atomic_fetch_sub(&self->memory, size);
        return USERSWAP_STORE_FULL;
    }
    struct object *object = malloc(size - HEAD);
    if (!object) {
        atomic_fetch_sub(&self->memory, size);
        snprintf(why, USERSWAP_STORE_WHY, "there is no memory for %llu bytes", (unsigned long long)size);
        return USERSWAP_STORE_AGAIN;
    }
    object->key = *key;
    object->is_filled = is_filled;
    if (is_filled)
        memcpy(object->word, page, sizeof object->word);
    else
        memcpy(object->page, page, self->page_size);
    atomic_fetch_add(&self->objects, 1);
    atomic_fetch_add(&self->filled, is_filled);
    *id = (uintptr_t)object;
    return USERSWAP_STORE_OK;
}

static int32_t store_get(void *store, uint64_t id, const struct userswap_store_key *key, uint8_t *page, uint64_t *length,
                         char *why)
{
    (void)why;
    struct store *self = store;
    const struct object *object = (const struct object *)(uintptr_t)id;
    if (memcmp(&object->key, key, sizeof *key) != 0)
        return USERSWAP_STORE_NOT_FOUND;
    if (object->is_filled)
        for (size_t at = 0; at < self->page_size; at += sizeof object->word)
            memcpy(page + at, object->word, sizeof object->word);
    else
        memcpy(page, object->page, self->page_size);
    *length = self->page_size;
    return USERSWAP_STORE_OK;
}

static void store_stats(void *store, struct userswap_store_stats *stats)
{
    struct store *self = store;
    uint64_t objects = atomic_load(&self->objects), filled = atomic_load(&self->filled);
    stats->memory_bytes = atomic_load(&self->memory);
    stats->stored_bytes = stats->memory_bytes - objects * HEAD;
    stats->same_filled_pages = filled;
    stats->incompressible_pages = objects - filled;
}

/* userswap removes all objects before; whoever wants to be sure keeps a list of them. */
static void store_close(void *store)
{
    free(store);
}

static const struct userswap_store_plugin plugin = {
    .abi = USERSWAP_STORE_ABI,
    .size = sizeof plugin,
    .name = "malloc",
    .open = store_open,
    .close = store_close,
    .put = store_put,
    .get = store_get,
    .remove = store_remove,
    .stats = store_stats,
    /* No put_batch: each page of a batch is put by itself. No maintain: free gives memory back. */
};

const struct userswap_store_plugin *userswap_store_plugin(uint32_t host_abi)
{
    (void)host_abi;
    return &plugin;
}
