/* SPDX-License-Identifier: Apache-2.0 */
/* Converter of kernel log lines to OCSF events: the quick way for usual lines.
 *
 * It knows nothing of OCSF. The general code (Python) converts the first lines of each form, and then
 * gives this converter the template of their events. A line of a form that has no template yet, and
 * every unusual line, is left to the general code. ocsf_nft/conversion/native_library.py calls these
 * functions.
 */
#ifndef OCSF_NFT_CONVERTER_H
#define OCSF_NFT_CONVERTER_H

#include <stddef.h>
#include <stdint.h>

struct converter;
struct line_counts;

struct bytes {
	const uint8_t *at;
	size_t size;
};

struct settings {
	/* Tables of address kinds: the first addresses of all ranges in ascending order, and the kind
	 * of each range (ocsf_nft/ocsf/addresses.py). */
	struct bytes ipv4_starts;
	struct bytes ipv4_kinds;
	struct bytes ipv6_starts;
	struct bytes ipv6_kinds;
	/* One bit for each port whose number affects an event, the lowest bit first. */
	struct bytes ports;
	/* Hash key that no sender of packets knows. */
	uint64_t key[2];
	/* Boot time, in ns since the epoch. */
	int64_t boot_ns;
	/* Start of what is hashed for the uid of an event. */
	struct bytes uid_start;
};

/* Why ``convert`` has returned. */
enum state {
	/* All complete lines have been converted. */
	IS_DONE,
	/* The output has no space for the next event. */
	IS_FULL,
	/* The general code must convert the next line. It can then give: */
	IS_ODD, /* nothing */
	IS_NEW_STAMP, /* add_stamp() */
	IS_NEW_RULE, /* add_rule() */
	IS_NEW_FORM, /* add_template() */
};

#define LONGEST_KEY 1024

struct run {
	/* Arguments. Lines end with a line break; a rest without one is not read. */
	struct bytes input;
	/* Offset of the first line to convert. */
	size_t start;
	struct line_counts *counts;
	uint8_t *output;
	size_t output_size;
	int64_t received_ns;
	/* 0: the time at which each event is made. */
	int64_t processed_ns;
	/* A stamp that counts from boot and is later is left to the general code. */
	int64_t latest_ns;
	/* Argument and result: the line before was one of /dev/kmsg. */
	uint32_t is_after_kmsg;
	/* Results. */
	uint32_t state;
	/* Offset of the line that follows the last converted one. */
	size_t end;
	/* Number of this line among equal ones; 0: it is not counted. An argument, too: the number of
	 * the first line if it is counted already, as after IS_FULL. */
	uint64_t number;
	size_t written;
	uint64_t lines;
	uint64_t records;
	uint64_t skipped;
	/* Key for add_stamp(), add_rule() or add_template(). */
	size_t key_size;
	uint8_t key[LONGEST_KEY];
};

/* Facts that all lines of one log rule, host and pair of devices share. */
struct rule {
	/* Lines with the same shape, and the same properties in the key of a template, have the same
	 * template. */
	uint32_t shape;
	/* The records are not converted, only counted. */
	uint8_t is_filtered;
	/* The events have no user and group, although the lines have. */
	uint8_t is_ownerless;
	/* JSON of what is hashed for the uid of a flow, up to the user. */
	struct bytes flow_start;
	/* Values for the slots of a template; empty where each line has its own value. */
	const struct bytes *values;
	size_t values_size;
};

/* Part of a template: literal bytes, and then the value of a slot. */
struct piece {
	struct bytes literal;
	/* Index in the result of ocsf_nft.ocsf.event_slots.values_of(); -1: none. */
	int32_t slot;
};

/* Only these functions are visible outside of the library. */
#pragma GCC visibility push(default)

/* Return NULL if memory is short. */
struct converter *converter_new(const struct settings *settings);
void converter_free(struct converter *converter);

/* Each of these copies its arguments, and returns 0, or -1 if memory is short or an argument is
 * too long. */
int add_stamp(struct converter *converter, struct bytes key, int64_t time_ns);
int add_rule(struct converter *converter, struct bytes key, const struct rule *rule);
/* Without pieces, the lines of this form are always left to the general code. */
int add_template(struct converter *converter, struct bytes key, const struct piece *pieces,
		 size_t pieces_size);

void convert(struct converter *converter, struct run *run);

#pragma GCC visibility pop

#endif
