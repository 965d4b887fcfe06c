/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* memmem() */
#include "line_counts.h"

#include "digests.h"

#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

/* Line in a list by the time of its last occurrence, and in the chain of its bucket. */
struct counted {
	uint64_t hash;
	uint64_t number;
	uint32_t older;
	uint32_t newer;
	uint32_t next;
};

struct line_counts {
	uint64_t key[2];
	uint32_t limit;
	uint32_t used;
	uint32_t oldest;
	uint32_t newest;
	uint32_t buckets_mask;
	uint32_t *buckets;
	struct counted *lines;
	/* Result of count_lines(), or argument of use_counted(). */
	struct repeated_line *repeated;
	size_t repeated_size;
	size_t repeated_room;
	/* After use_counted(): the next one of ``repeated``, and the index of the next line. */
	int is_counted_elsewhere;
	size_t next_repeated;
	uint64_t index;
};

struct line_counts *line_counts_new(size_t limit, const uint64_t key[2])
{
	struct line_counts *counts = calloc(1, sizeof(*counts));
	uint32_t buckets = 1;

	if (counts == NULL || limit == 0) {
		free(counts);
		return NULL;
	}
	while (buckets < 2 * limit)
		buckets *= 2;
	counts->limit = (uint32_t)limit;
	counts->oldest = counts->newest = NONE;
	counts->buckets_mask = buckets - 1;
	memcpy(counts->key, key, sizeof(counts->key));
	counts->buckets = malloc(buckets * sizeof(*counts->buckets));
	counts->lines = malloc(limit * sizeof(*counts->lines));
	if (counts->buckets == NULL || counts->lines == NULL) {
		line_counts_free(counts);
		return NULL;
	}
	memset(counts->buckets, 0xff, buckets * sizeof(*counts->buckets));
	return counts;
}

void line_counts_free(struct line_counts *counts)
{
	if (counts == NULL)
		return;
	free(counts->buckets);
	free(counts->lines);
	free(counts->repeated);
	free(counts);
}

static void unlink_line(struct line_counts *counts, uint32_t at)
{
	struct counted *line = &counts->lines[at];

	*(line->older == NONE ? &counts->oldest : &counts->lines[line->older].newer) = line->newer;
	*(line->newer == NONE ? &counts->newest : &counts->lines[line->newer].older) = line->older;
}

static void append_line(struct line_counts *counts, uint32_t at)
{
	counts->lines[at].older = counts->newest;
	counts->lines[at].newer = NONE;
	*(counts->newest == NONE ? &counts->oldest : &counts->lines[counts->newest].newer) = at;
	counts->newest = at;
}

static uint32_t evict_oldest(struct line_counts *counts)
{
	uint32_t at = counts->oldest;
	uint32_t *link = &counts->buckets[counts->lines[at].hash & counts->buckets_mask];

	while (*link != at)
		link = &counts->lines[*link].next;
	*link = counts->lines[at].next;
	unlink_line(counts, at);
	return at;
}

static uint64_t number_of(struct line_counts *counts, uint64_t hash)
{
	uint32_t *bucket = &counts->buckets[hash & counts->buckets_mask];
	uint32_t at;

	for (at = *bucket; at != NONE; at = counts->lines[at].next) {
		if (counts->lines[at].hash == hash) {
			unlink_line(counts, at);
			append_line(counts, at);
			return ++counts->lines[at].number;
		}
	}
	at = counts->used < counts->limit ? counts->used++ : evict_oldest(counts);
	counts->lines[at].hash = hash;
	counts->lines[at].number = 1;
	counts->lines[at].next = *bucket;
	*bucket = at;
	append_line(counts, at);
	return 1;
}

static int add_repeated(struct line_counts *counts, uint64_t index, uint64_t number)
{
	if (counts->repeated_size == counts->repeated_room) {
		size_t room = counts->repeated_room ? 2 * counts->repeated_room : 1024;
		struct repeated_line *grown = realloc(counts->repeated, room * sizeof(*grown));

		if (grown == NULL)
			return 0;
		counts->repeated = grown;
		counts->repeated_room = room;
	}
	counts->repeated[counts->repeated_size].index = index;
	counts->repeated[counts->repeated_size++].number = number;
	return 1;
}

struct bytes without_returns(struct bytes line)
{
	while (line.size > 0 && line.at[line.size - 1] == '\r')
		line.size--;
	return line;
}

static int starts_with(struct bytes line, const char *start)
{
	size_t size = strlen(start);

	return line.size >= size && memcmp(line.at, start, size) == 0;
}

int is_counted(struct bytes line)
{
	/* The first field of a journal export entry is no line. */
	if (starts_with(line, "__CURSOR="))
		return 0;
	return memmem(line.at, line.size, "IN=", 3) != NULL || starts_with(line, "{")
	       || starts_with(line, "NFLOG group=");
}

uint64_t count_line(struct line_counts *counts, struct bytes line)
{
	uint64_t index;

	if (!counts->is_counted_elsewhere)
		return number_of(counts, siphash(line.at, line.size, counts->key));
	index = counts->index++;
	if (counts->next_repeated < counts->repeated_size
	    && counts->repeated[counts->next_repeated].index == index)
		return counts->repeated[counts->next_repeated++].number;
	return 1;
}

int64_t count_lines(struct line_counts *counts, struct bytes block,
		    const struct repeated_line **repeated)
{
	const uint8_t *at = block.at, *end = block.at + block.size, *line_end;
	uint64_t index = 0;

	counts->repeated_size = 0;
	for (; at < end && (line_end = memchr(at, '\n', (size_t)(end - at))) != NULL;
	     at = line_end + 1) {
		struct bytes line = without_returns((struct bytes){ at, (size_t)(line_end - at) });
		uint64_t number;

		if (!is_counted(line))
			continue;
		number = count_line(counts, line);
		if (number > 1 && !add_repeated(counts, index, number))
			return -1;
		index++;
	}
	*repeated = counts->repeated;
	return (int64_t)counts->repeated_size;
}

int use_counted(struct line_counts *counts, const struct repeated_line *repeated, size_t size)
{
	counts->is_counted_elsewhere = 1;
	counts->repeated_size = counts->next_repeated = 0;
	counts->index = 0;
	for (size_t at = 0; at < size; at++)
		if (!add_repeated(counts, repeated[at].index, repeated[at].number))
			return -1;
	return 0;
}
