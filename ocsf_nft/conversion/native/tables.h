/* SPDX-License-Identifier: Apache-2.0 */
/* Hash table with byte strings as keys. It is emptied when it has reached its limits: the lines of a
 * file can have any number of forms. */
#ifndef OCSF_NFT_TABLES_H
#define OCSF_NFT_TABLES_H

#include "converter.h"

struct table;

/* ``limit`` is a power of two; ``size_limit`` is the size of all values, in bytes. */
struct table *table_new(size_t limit, size_t size_limit, const uint64_t key[2]);
void table_free(struct table *table);

/* Return the value of a key; NULL if there is none. */
const void *table_get(const struct table *table, const void *key, size_t key_size);

/* Own ``value``, which malloc() returned, and free the one before. Return -1 if memory is short. */
int table_put(struct table *table, struct bytes key, void *value, size_t value_size);

#endif
