/* SPDX-License-Identifier: Apache-2.0 */
#include "tables.h"

#include "digests.h"

#include <stdlib.h>
#include <string.h>

struct entry {
	uint64_t hash;
	uint8_t *key;
	size_t key_size;
	void *value;
	size_t value_size;
};

struct table {
	uint64_t key[2];
	size_t limit;
	size_t size_limit;
	size_t used;
	size_t size;
	/* Twice as many as ``limit``, so that one is always free. */
	struct entry *entries;
};

struct table *table_new(size_t limit, size_t size_limit, const uint64_t key[2])
{
	struct table *table = calloc(1, sizeof(*table));

	if (table == NULL)
		return NULL;
	table->limit = limit;
	table->size_limit = size_limit;
	memcpy(table->key, key, sizeof(table->key));
	table->entries = calloc(2 * limit, sizeof(*table->entries));
	if (table->entries == NULL) {
		free(table);
		return NULL;
	}
	return table;
}

static void empty(struct table *table)
{
	for (size_t at = 0; at < 2 * table->limit; at++) {
		free(table->entries[at].key);
		free(table->entries[at].value);
	}
	memset(table->entries, 0, 2 * table->limit * sizeof(*table->entries));
	table->used = table->size = 0;
}

void table_free(struct table *table)
{
	if (table == NULL)
		return;
	empty(table);
	free(table->entries);
	free(table);
}

/* Return the entry of a key, or the free one in which it belongs. */
static struct entry *entry_of(const struct table *table, const void *key, size_t key_size,
			      uint64_t hash)
{
	size_t mask = 2 * table->limit - 1, at = hash & mask;

	for (;; at = (at + 1) & mask) {
		struct entry *entry = &table->entries[at];

		if (entry->key == NULL
		    || (entry->hash == hash && entry->key_size == key_size
			&& memcmp(entry->key, key, key_size) == 0))
			return entry;
	}
}

const void *table_get(const struct table *table, const void *key, size_t key_size)
{
	return entry_of(table, key, key_size, siphash(key, key_size, table->key))->value;
}

int table_put(struct table *table, struct bytes key, void *value, size_t value_size)
{
	uint64_t hash = siphash(key.at, key.size, table->key);
	struct entry *entry;

	if (table->used >= table->limit || table->size + value_size > table->size_limit)
		empty(table);
	entry = entry_of(table, key.at, key.size, hash);
	if (entry->key == NULL) {
		entry->key = malloc(key.size ? key.size : 1);
		if (entry->key == NULL) {
			free(value);
			return -1;
		}
		memcpy(entry->key, key.at, key.size);
		entry->key_size = key.size;
		entry->hash = hash;
		table->used++;
	} else {
		table->size -= entry->value_size;
		free(entry->value);
	}
	entry->value = value;
	entry->value_size = value_size;
	table->size += value_size;
	return 0;
}
