/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers of equal lines, as in ocsf_nft/sources/replay/line_numbers.py. */
#ifndef OCSF_NFT_LINE_COUNTS_H
#define OCSF_NFT_LINE_COUNTS_H

#include "converter.h"

struct line_counts;

/* Line that equals ``number - 1`` earlier ones, by its index among the counted lines of a block. */
struct repeated_line {
	uint64_t index;
	uint64_t number;
};

#pragma GCC visibility push(default)

/* Count up to ``limit`` different lines: the one that has not occurred for longest is evicted.
 * Return NULL if memory is short, or if ``limit`` is 0. */
struct line_counts *line_counts_new(size_t limit, const uint64_t key[2]);
void line_counts_free(struct line_counts *counts);

/* Count a line; return its number among equal ones, from 1. */
uint64_t count_line(struct line_counts *counts, struct bytes line);

/* Count the complete lines of a block whose number their events may need. Return the number of lines
 * that occurred before, and set ``repeated`` to them, which are valid until the next call; -1 if
 * memory is short. */
int64_t count_lines(struct line_counts *counts, struct bytes block,
		    const struct repeated_line **repeated);

/* Use the result of count_lines() in another process for the next lines that are counted here. Return
 * -1 if memory is short. */
int use_counted(struct line_counts *counts, const struct repeated_line *repeated, size_t size);

#pragma GCC visibility pop

/* Return 1 if the number of a line must be counted. */
int is_counted(struct bytes line);

/* Return the line without carriage returns at its end. */
struct bytes without_returns(struct bytes line);

#endif
