/* A plug-in that is wrong in the way its option says, about page 13 alone; without an option it is right. Whatever it says, it ends the program if userswap
 * breaks a promise of the header: an id that isn't in use, a second remove, a remove under a get.
 */
#include "userswap_store.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 1 << 14 };

struct slot {
    struct userswap_store_key key;
    uint8_t *page;
    int gets;
};

struct store {
    pthread_mutex_t lock;
    size_t page_size;
    uint64_t capacity, objects;
    char wrong[32];
    uint64_t last;
    struct slot slots[SLOTS];
    uint32_t free[SLOTS], frees;
};

static void broken(const char *promise)
{
    fprintf(stderr, "userswap broke a promise: %s\n", promise);
    abort();
}

static int is(const struct store *self, const struct userswap_store_key *key, const char *wrong)
{
    return key->page == 13 && strcmp(self->wrong, wrong) == 0;
}

static int32_t plugin_open(const struct userswap_store_config *config, struct userswap_store_capabilities *capabilities, void **store, char *why)
{
    if (config->size != sizeof *config || capabilities->size != sizeof *capabilities || capabilities->flags || why[0])
        broken("open");
    const char *wrong = strncmp(config->options, "wrong=", 6) == 0 ? config->options + 6 : "";
    if (strcmp(wrong, "refused") == 0) {
        snprintf(why, USERSWAP_STORE_WHY, "not on a \x1b[31mMonday");
        return USERSWAP_STORE_REFUSED;
    }
    if (strcmp(wrong, "open") == 0)
        return -5;
    struct store *self = calloc(1, sizeof *self);
    pthread_mutex_init(&self->lock, NULL);
    snprintf(self->wrong, sizeof self->wrong, "%s", wrong);
    self->page_size = config->page_size;
    self->capacity = config->capacity;
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        self->free[self->frees++] = SLOTS - 1 - slot;
    capabilities->capacity = strcmp(wrong, "unlimited") == 0 ? 0 : config->capacity;
    if (strcmp(wrong, "flags") == 0)
        capabilities->flags = 1u << 30;
    if (strcmp(wrong, "late") == 0)
        capabilities->flags = USERSWAP_STORE_GET_MAY_WAIT;
    capabilities->max_batch = strcmp(wrong, "max_batch") == 0 ? UINT64_MAX : 64;
    *store = self;
    return USERSWAP_STORE_OK;
}

static void plugin_close(void *store)
{
    struct store *self = store;
    for (int slot = 0; slot < SLOTS; slot++)
        free(self->slots[slot].page);
    free(self);
}

static int32_t put_locked(struct store *self, const struct userswap_store_key *key, const uint8_t *page, uint64_t *id, char *why)
{
    if (is(self, key, "put_number"))
        return 77;
    if (is(self, key, "sentence")) {
        memset(why, '\xc3', USERSWAP_STORE_WHY);
        return USERSWAP_STORE_FAILED;
    }
    if (is(self, key, "put_damaged"))
        return USERSWAP_STORE_DAMAGED;
    if (is(self, key, "put_again"))
        return USERSWAP_STORE_AGAIN;
    if (is(self, key, "put_closed"))
        return USERSWAP_STORE_CLOSED;
    if (self->frees == 0 || (self->capacity && (self->objects + 1) * self->page_size > self->capacity))
        return USERSWAP_STORE_FULL;
    if (is(self, key, "twice")) {
        /* Over the page before. */
        memcpy(self->slots[self->last].page, page, self->page_size);
        *id = self->last;
        return USERSWAP_STORE_OK;
    }
    uint32_t slot = self->free[--self->frees];
    self->slots[slot].key = *key;
    self->slots[slot].page = malloc(self->page_size);
    memcpy(self->slots[slot].page, page, self->page_size);
    self->objects++;
    self->last = slot;
    *id = slot;
    return USERSWAP_STORE_OK;
}

static void remove_locked(struct store *self, uint64_t id)
{
    if (id >= SLOTS || !self->slots[id].page)
        broken("an id that isn't in use is removed");
    if (self->slots[id].gets)
        broken("an object is removed while it is being got");
    free(self->slots[id].page);
    self->slots[id].page = NULL;
    self->objects--;
    self->free[self->frees++] = (uint32_t)id;
}

static int32_t plugin_put(void *store, const struct userswap_store_key *key, const uint8_t *page, uint64_t *id, char *why)
{
    struct store *self = store;
    pthread_mutex_lock(&self->lock);
    int32_t answer = put_locked(self, key, page, id, why);
    pthread_mutex_unlock(&self->lock);
    return answer;
}

static int32_t plugin_put_batch(void *store, uint64_t count, const struct userswap_store_key *keys, const uint8_t *const *pages, uint64_t *ids, char *why)
{
    struct store *self = store;
    pthread_mutex_lock(&self->lock);
    int32_t answer = USERSWAP_STORE_OK;
    uint64_t at = 0;
    while (at < count && answer == USERSWAP_STORE_OK) {
        answer = put_locked(self, &keys[at], pages[at], &ids[at], why);
        at += answer == USERSWAP_STORE_OK;
    }
    /* Its last is its first. */
    if (answer == USERSWAP_STORE_OK && is(self, &keys[0], "batch_twice")) {
        remove_locked(self, ids[count - 1]);
        ids[count - 1] = ids[0];
    }
    while (answer != USERSWAP_STORE_OK && at > 0)
        remove_locked(self, ids[--at]);
    pthread_mutex_unlock(&self->lock);
    return answer;
}

static int32_t plugin_get(void *store, uint64_t id, const struct userswap_store_key *key, uint8_t *page, uint64_t *length, char *why)
{
    struct store *self = store;
    pthread_mutex_lock(&self->lock);
    if (id >= SLOTS || !self->slots[id].page || why[0])
        broken("an id that isn't in use is got");
    struct slot *slot = &self->slots[id];
    slot->gets++;
    pthread_mutex_unlock(&self->lock);

    const uint8_t *from = slot->page;
    int32_t answer = USERSWAP_STORE_OK;
    *length = self->page_size;
    if (is(self, key, "short"))
        *length = self->page_size - 1;
    if (is(self, key, "long"))
        *length = UINT64_MAX;
    if (is(self, key, "get_number"))
        answer = INT32_MIN;
    if (is(self, key, "get_full"))
        answer = USERSWAP_STORE_FULL;
    if (is(self, key, "get_damaged"))
        answer = USERSWAP_STORE_DAMAGED;
    if (is(self, key, "get_closed"))
        answer = USERSWAP_STORE_CLOSED;
    if (is(self, key, "get_again"))
        answer = USERSWAP_STORE_AGAIN;
    if (is(self, key, "other"))
        from = self->slots[self->last].page;
    if (!is(self, key, "nothing"))
        memcpy(page, from, self->page_size);
    if (is(self, key, "flipped"))
        page[self->page_size / 2] ^= 4;
    if (answer == USERSWAP_STORE_OK && memcmp(&slot->key, key, sizeof *key) != 0)
        answer = USERSWAP_STORE_NOT_FOUND;

    pthread_mutex_lock(&self->lock);
    slot->gets--;
    pthread_mutex_unlock(&self->lock);
    return answer;
}

static void plugin_remove(void *store, uint64_t id)
{
    struct store *self = store;
    pthread_mutex_lock(&self->lock);
    remove_locked(self, id);
    pthread_mutex_unlock(&self->lock);
}

static void plugin_stats(void *store, struct userswap_store_stats *stats)
{
    struct store *self = store;
    pthread_mutex_lock(&self->lock);
    stats->stored_bytes = stats->memory_bytes = self->objects * self->page_size;
    stats->incompressible_pages = self->objects;
    if (strcmp(self->wrong, "stats") == 0)
        memset(&stats->stored_bytes, 0xff, sizeof *stats - 8);
    pthread_mutex_unlock(&self->lock);
}

static void plugin_maintain(void *store, uint64_t bytes, struct userswap_store_maintained *done)
{
    struct store *self = store;
    (void)bytes;
    if (strcmp(self->wrong, "stats") == 0)
        memset(&done->more, 0xff, sizeof *done - 4);
}

#ifndef ABI
#define ABI USERSWAP_STORE_ABI
#endif
#ifndef SIZE
#define SIZE sizeof plugin
#endif
#ifndef GET
#define GET plugin_get
#endif

static const struct userswap_store_plugin plugin = {
    .abi = ABI,
    .size = SIZE,
    .name = "nonsense",
    .open = plugin_open,
    .close = plugin_close,
    .put = plugin_put,
    .put_batch = plugin_put_batch,
    .get = GET,
    .remove = plugin_remove,
    .stats = plugin_stats,
    .maintain = plugin_maintain,
};

#ifndef SYMBOL
#define SYMBOL userswap_store_plugin
#endif

const struct userswap_store_plugin *SYMBOL(uint32_t host_abi)
{
    (void)host_abi;
#ifdef NOTHING
    return NULL;
#else
    return &plugin;
#endif
}
