/* Where everything in the header lies, for a comparison. */
#include "userswap_store.h"

#include <stddef.h>
#include <stdio.h>

#define SIZE(type) printf(#type " %zu\n", sizeof(struct userswap_store_##type))
#define FIELD(type, field) printf(#type "." #field " %zu\n", offsetof(struct userswap_store_##type, field))

int main(void)
{
    SIZE(key), FIELD(key, owner), FIELD(key, page), FIELD(key, generation);
    SIZE(config), FIELD(config, size), FIELD(config, page_size), FIELD(config, capacity), FIELD(config, options);
    SIZE(capabilities), FIELD(capabilities, size), FIELD(capabilities, flags), FIELD(capabilities, capacity), FIELD(capabilities, max_batch);
    SIZE(stats), FIELD(stats, size), FIELD(stats, stored_bytes), FIELD(stats, memory_bytes), FIELD(stats, device_bytes);
    FIELD(stats, same_filled_pages), FIELD(stats, incompressible_pages);
    SIZE(maintained), FIELD(maintained, size), FIELD(maintained, more), FIELD(maintained, moved_bytes), FIELD(maintained, released_bytes);
    SIZE(plugin), FIELD(plugin, abi), FIELD(plugin, size), FIELD(plugin, name), FIELD(plugin, open), FIELD(plugin, close), FIELD(plugin, put);
    FIELD(plugin, put_batch), FIELD(plugin, get), FIELD(plugin, remove), FIELD(plugin, stats), FIELD(plugin, maintain);
    printf("numbers %u %u %d %d %d %d %d %d %d %d\n", USERSWAP_STORE_ABI, USERSWAP_STORE_WHY, USERSWAP_STORE_OK, USERSWAP_STORE_FULL,
           USERSWAP_STORE_NOT_FOUND, USERSWAP_STORE_DAMAGED, USERSWAP_STORE_AGAIN, USERSWAP_STORE_FAILED, USERSWAP_STORE_CLOSED,
           USERSWAP_STORE_REFUSED);
    printf("flags %u %u %u %u\n", USERSWAP_STORE_GET_MAY_WAIT, USERSWAP_STORE_ON_DEVICE, USERSWAP_STORE_ENCRYPTS, USERSWAP_STORE_COUNTS_SAME_FILLED);
    return 0;
}
