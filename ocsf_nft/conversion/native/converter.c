/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* memmem() */
#include "converter.h"

#include "digests.h"
#include "line_counts.h"
#include "packet_line.h"
#include "tables.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Longer lines, and events, are left to the general code. */
#define LONGEST_LINE 4096
#define NS_PER_MS 1000000
/* Longest ``flow_start`` of a rule: what is hashed must fit into SHA1_LONGEST. */
#define LONGEST_FLOW_START 800
#define IDENTITY_HEX 24 /* digits of a hash of 12 bytes */

/* Indexes in the result of values_of() in ocsf_nft/ocsf/event_slots.py, of the values that differ
 * from line to line. All others are those of the rule. */
enum slot {
	SOURCE_PORT = 0,
	DESTINATION_PORT = 1,
	SOURCE = 3,
	DESTINATION = 4,
	UID = 5,
	GID = 6,
	TCP_FLAGS = 7,
	LENGTH = 9,
	TIME = 10,
	START = 11,
	END = 12,
	DURATION = 13,
	EVENT_UID = 14,
	FLOW_UID = 15,
	COMMUNITY_ID = 16,
	RAW_SIZE = 17,
	RAW = 18,
	DETAILS = 19,
	ORIGINAL_TIME = 21,
	IDENTITY = 22,
	SEQUENCE = 23,
	RECEIVED = 24,
	PROCESSED = 25,
	SOURCE_MAC = 29,
	DESTINATION_MAC = 30,
};

#define LINE_SLOTS 32
#define COPIED_PORT (-1)
#define NO_PORT (-2)

/* Key of a template: what affects an event besides its rule. */
struct form {
	uint32_t shape;
	int32_t source_port;
	int32_t destination_port;
	uint16_t ethertype;
	uint8_t source_kind;
	uint8_t destination_kind;
	uint8_t protocol;
	uint8_t fragment;
	uint8_t has;
	uint8_t icmp_type;
	uint8_t icmp_code;
	uint8_t tcp_flags;
	uint8_t has_tcp_flags;
	uint8_t has_macs;
	uint8_t has_owner;
	uint8_t unused[3];
};

/* SYN, RST, ACK: as TCP_FLAGS in event_slots.py. */
#define DECISIVE_TCP_FLAGS 0x16

struct converter {
	int64_t boot_ns;
	uint64_t key[2];
	size_t ipv4_ranges;
	size_t ipv6_ranges;
	uint8_t *ipv4_starts;
	uint8_t *ipv4_kinds;
	uint8_t *ipv6_starts;
	uint8_t *ipv6_kinds;
	uint8_t ports[8192];
	uint8_t uid_start[64];
	size_t uid_start_size;
	struct table *stamps;
	struct table *rules;
	struct table *templates;
};

/* Values in the tables, each in one block of memory. */
struct stored_rule {
	struct rule rule;
	struct bytes values[];
};

struct stored_template {
	/* Size of all literals. */
	size_t size;
	size_t pieces_size;
	struct piece pieces[];
};

/* Values of one line that are made from it. */
struct made {
	uint8_t event_uid[36];
	uint8_t flow_uid[36];
	uint8_t community_id[30];
	/* With quotation marks. */
	uint8_t identity[96];
	size_t identity_size;
	int64_t time_ms;
	int64_t received_ms;
	int64_t processed_ms;
};

static uint8_t *copy_of(struct bytes bytes)
{
	uint8_t *copy = malloc(bytes.size ? bytes.size : 1);

	if (copy != NULL && bytes.size > 0)
		memcpy(copy, bytes.at, bytes.size);
	return copy;
}

struct converter *converter_new(const struct settings *settings)
{
	struct converter *converter = calloc(1, sizeof(*converter));

	if (converter == NULL)
		return NULL;
	converter->boot_ns = settings->boot_ns;
	memcpy(converter->key, settings->key, sizeof(converter->key));
	converter->ipv4_ranges = settings->ipv4_kinds.size;
	converter->ipv6_ranges = settings->ipv6_kinds.size;
	converter->ipv4_starts = copy_of(settings->ipv4_starts);
	converter->ipv4_kinds = copy_of(settings->ipv4_kinds);
	converter->ipv6_starts = copy_of(settings->ipv6_starts);
	converter->ipv6_kinds = copy_of(settings->ipv6_kinds);
	if (settings->ports.size == sizeof(converter->ports))
		memcpy(converter->ports, settings->ports.at, sizeof(converter->ports));
	if (settings->uid_start.size <= sizeof(converter->uid_start)) {
		memcpy(converter->uid_start, settings->uid_start.at, settings->uid_start.size);
		converter->uid_start_size = settings->uid_start.size;
	}
	converter->stamps = table_new(64, 1 << 16, settings->key);
	converter->rules = table_new(8192, 16 << 20, settings->key);
	converter->templates = table_new(4096, 32 << 20, settings->key);
	if (converter->ipv4_starts == NULL || converter->ipv4_kinds == NULL
	    || converter->ipv6_starts == NULL || converter->ipv6_kinds == NULL
	    || converter->stamps == NULL || converter->rules == NULL
	    || converter->templates == NULL) {
		converter_free(converter);
		return NULL;
	}
	return converter;
}

void converter_free(struct converter *converter)
{
	if (converter == NULL)
		return;
	free(converter->ipv4_starts);
	free(converter->ipv4_kinds);
	free(converter->ipv6_starts);
	free(converter->ipv6_kinds);
	table_free(converter->stamps);
	table_free(converter->rules);
	table_free(converter->templates);
	free(converter);
}

int add_stamp(struct converter *converter, struct bytes key, int64_t time_ns)
{
	int64_t *stored = malloc(sizeof(*stored));

	if (stored == NULL)
		return -1;
	*stored = time_ns;
	return table_put(converter->stamps, key, stored, sizeof(*stored));
}

/* Copy ``bytes`` to ``*room``, which moves to the end of the copy. */
static struct bytes moved(struct bytes bytes, uint8_t **room)
{
	struct bytes copy = { *room, bytes.size };

	if (bytes.size > 0)
		memcpy(*room, bytes.at, bytes.size);
	*room += bytes.size;
	return copy;
}

int add_rule(struct converter *converter, struct bytes key, const struct rule *rule)
{
	size_t size = sizeof(struct stored_rule) + rule->values_size * sizeof(struct bytes);
	struct stored_rule *stored;
	uint8_t *room;

	if (rule->flow_start.size > LONGEST_FLOW_START)
		return -1;
	size += rule->flow_start.size;
	for (size_t at = 0; at < rule->values_size; at++)
		size += rule->values[at].size;
	stored = malloc(size);
	if (stored == NULL)
		return -1;
	stored->rule = *rule;
	room = (uint8_t *)&stored->values[rule->values_size];
	stored->rule.flow_start = moved(rule->flow_start, &room);
	for (size_t at = 0; at < rule->values_size; at++)
		stored->values[at] = moved(rule->values[at], &room);
	stored->rule.values = stored->values;
	return table_put(converter->rules, key, stored, size);
}

int add_template(struct converter *converter, struct bytes key, const struct piece *pieces,
		 size_t pieces_size)
{
	size_t literals = 0, size = sizeof(struct stored_template) + pieces_size * sizeof(*pieces);
	struct stored_template *stored;
	uint8_t *room;

	for (size_t at = 0; at < pieces_size; at++)
		literals += pieces[at].literal.size;
	stored = malloc(size + literals);
	if (stored == NULL)
		return -1;
	stored->size = literals;
	stored->pieces_size = pieces_size;
	room = (uint8_t *)&stored->pieces[pieces_size];
	for (size_t at = 0; at < pieces_size; at++) {
		stored->pieces[at].literal = moved(pieces[at].literal, &room);
		stored->pieces[at].slot = pieces[at].slot;
	}
	return table_put(converter->templates, key, stored, size + literals);
}

/* Kind of the range that an address is in: the last one that does not start after it. */
static uint8_t kind_of(const uint8_t *address, size_t size, const uint8_t *starts,
		       const uint8_t *kinds, size_t ranges)
{
	size_t low = 0, high = ranges;

	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;

		if (memcmp(starts + middle * size, address, size) <= 0)
			low = middle;
		else
			high = middle;
	}
	return kinds[low];
}

static uint8_t address_kind(const struct converter *converter, const struct address *address,
			    uint8_t version)
{
	if (version == 4)
		return kind_of(address->bytes, 4, converter->ipv4_starts, converter->ipv4_kinds,
			       converter->ipv4_ranges);
	return kind_of(address->bytes, 16, converter->ipv6_starts, converter->ipv6_kinds,
		       converter->ipv6_ranges);
}

static int32_t port_in_form(const struct converter *converter, uint16_t port)
{
	return converter->ports[port / 8] >> port % 8 & 1 ? port : COPIED_PORT;
}

static void make_form(const struct converter *converter, const struct rule *rule,
		      const struct packet *packet, struct form *form)
{
	memset(form, 0, sizeof(*form));
	form->shape = rule->shape;
	form->source_port = form->destination_port = NO_PORT;
	if (packet->has == HAS_PORTS) {
		form->source_port = port_in_form(converter, packet->source_port);
		form->destination_port = port_in_form(converter, packet->destination_port);
	}
	form->ethertype = packet->ethertype;
	form->source_kind = address_kind(converter, &packet->source, packet->version);
	form->destination_kind = address_kind(converter, &packet->destination, packet->version);
	form->protocol = packet->protocol;
	form->fragment = packet->fragment;
	form->has = packet->has;
	form->icmp_type = packet->icmp_type;
	form->icmp_code = packet->icmp_code;
	if (packet->tcp_flags >= 0) {
		form->has_tcp_flags = 1;
		form->tcp_flags = packet->tcp_flags & DECISIVE_TCP_FLAGS;
	}
	form->has_macs = packet->has_macs;
	form->has_owner = packet->uid.at != NULL && !rule->is_ownerless;
}

static const char HEX[] = "0123456789abcdef";

static void put_hex(uint8_t *to, const uint8_t *bytes, size_t size)
{
	for (size_t at = 0; at < size; at++) {
		to[2 * at] = (uint8_t)HEX[bytes[at] >> 4];
		to[2 * at + 1] = (uint8_t)HEX[bytes[at] & 0xf];
	}
}

/* Write a decimal number; return its digits. */
static size_t put_number(uint8_t *to, int64_t number)
{
	uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
	uint8_t digits[20];
	size_t at = sizeof(digits), size = 0;

	do
		digits[--at] = (uint8_t)('0' + rest % 10);
	while ((rest /= 10) > 0);
	if (number < 0)
		to[size++] = '-';
	memcpy(to + size, digits + at, sizeof(digits) - at);
	return size + sizeof(digits) - at;
}

/* Write a UUID of version 5 (RFC 9562), which is a hash of a namespace and a name. */
static void put_uuid(uint8_t to[36], const uint8_t *hashed, size_t size)
{
	static const uint8_t GROUPS[] = { 4, 2, 2, 2, 6 };
	uint8_t digest[SHA1_BYTES];
	const uint8_t *from = digest;

	sha1(hashed, size, digest);
	digest[6] = (digest[6] & 0x0f) | 0x50;
	digest[8] = (digest[8] & 0x3f) | 0x80;
	for (size_t group = 0; group < sizeof(GROUPS); group++) {
		if (group > 0)
			*to++ = '-';
		put_hex(to, from, GROUPS[group]);
		to += 2 * GROUPS[group];
		from += GROUPS[group];
	}
}

static void put_base64(uint8_t to[28], const uint8_t digest[SHA1_BYTES])
{
	static const char LETTERS[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

	for (size_t at = 0; at < SHA1_BYTES; at += 3, to += 4) {
		uint32_t bits = (uint32_t)digest[at] << 16 | (uint32_t)digest[at + 1] << 8
				| (at + 2 < SHA1_BYTES ? digest[at + 2] : 0);

		to[0] = (uint8_t)LETTERS[bits >> 18];
		to[1] = (uint8_t)LETTERS[bits >> 12 & 0x3f];
		to[2] = (uint8_t)LETTERS[bits >> 6 & 0x3f];
		to[3] = at + 2 < SHA1_BYTES ? (uint8_t)LETTERS[bits & 0x3f] : '=';
	}
}

/* Reply to an ICMP message, as in ocsf_nft/ocsf/identifiers.py; -1: none. */
static int icmp_reply(uint8_t protocol, uint8_t type)
{
	static const uint8_t PAIRS[][2] = {
		{ 8, 0 }, { 13, 14 }, { 15, 16 }, { 10, 9 }, { 17, 18 },
	};
	static const uint8_t PAIRS6[][2] = {
		{ 128, 129 }, { 130, 131 }, { 133, 134 }, { 135, 136 }, { 139, 140 }, { 144, 145 },
	};
	const uint8_t(*pairs)[2] = protocol == 1 ? PAIRS : PAIRS6;
	size_t size = protocol == 1 ? sizeof(PAIRS) / 2 : sizeof(PAIRS6) / 2;

	for (size_t at = 0; at < size; at++) {
		if (pairs[at][0] == type)
			return pairs[at][1];
		if (pairs[at][1] == type)
			return pairs[at][0];
	}
	return -1;
}

/* Make the Community ID of a flow (version 1, seed 0). */
static void make_community_id(const struct packet *packet, uint8_t to[30])
{
	size_t address_size = packet->version == 4 ? 4 : 16, size = 0;
	const uint8_t *first = packet->source.bytes, *second = packet->destination.bytes;
	uint16_t first_port = packet->source_port, second_port = packet->destination_port;
	int has_ports = packet->has != 0 && packet->protocol != 136, is_one_way = 0, order;
	uint8_t hashed[2 + 32 + 2 + 4] = { 0 };
	uint8_t digest[SHA1_BYTES];

	if (packet->has == HAS_ICMP) {
		int reply = icmp_reply(packet->protocol, packet->icmp_type);

		is_one_way = reply < 0;
		first_port = packet->icmp_type;
		second_port = is_one_way ? packet->icmp_code : (uint16_t)reply;
	}
	order = memcmp(first, second, address_size);
	if (order == 0 && has_ports)
		order = first_port > second_port;
	if (!is_one_way && order > 0) {
		const uint8_t *other = first;
		uint16_t other_port = first_port;

		first = second;
		second = other;
		first_port = second_port;
		second_port = other_port;
	}
	size = 2;
	memcpy(hashed + size, first, address_size);
	size += address_size;
	memcpy(hashed + size, second, address_size);
	size += address_size;
	hashed[size] = packet->protocol;
	size += 2;
	if (has_ports) {
		hashed[size++] = (uint8_t)(first_port >> 8);
		hashed[size++] = (uint8_t)first_port;
		hashed[size++] = (uint8_t)(second_port >> 8);
		hashed[size++] = (uint8_t)second_port;
	}
	sha1(hashed, size, digest);
	to[0] = '1';
	to[1] = ':';
	put_base64(to + 2, digest);
}

static size_t put(uint8_t *to, const void *from, size_t size)
{
	memcpy(to, from, size);
	return size;
}

static size_t put_text(uint8_t *to, const char *text)
{
	return put(to, text, strlen(text));
}

static size_t put_span(uint8_t *to, struct span span, const char *without)
{
	return span.at == NULL ? put_text(to, without) : put(to, span.at, span.size);
}

/* Identity of a record, and the uid of its event. */
static void make_identity(const struct converter *converter, struct span line,
			  const struct header *header, uint64_t number, struct made *made)
{
	uint8_t digest[IDENTITY_HEX / 2], hashed[256];
	uint8_t *text = made->identity;
	size_t size = 0, hashed_size;

	text[size++] = '"';
	if (header->kind == LOG_KMSG) {
		size += put_text(text + size, "kmsg:");
		size += put_span(text + size, header->sequence, "");
		text[size++] = ':';
		size += put_span(text + size, header->stamp, "");
		text[size++] = ':';
		blake2b(header->message.at, header->message.size, digest, sizeof(digest));
		put_hex(text + size, digest, sizeof(digest));
		size += IDENTITY_HEX;
	} else {
		size += put_text(text + size, "line:");
		blake2b(line.at, line.size, digest, sizeof(digest));
		put_hex(text + size, digest, sizeof(digest));
		size += IDENTITY_HEX;
		text[size++] = ':';
		size += put_number(text + size, (int64_t)number);
	}
	hashed_size = put(hashed, converter->uid_start, converter->uid_start_size);
	hashed_size += put(hashed + hashed_size, text + 1, size - 1);
	put_uuid(made->event_uid, hashed, hashed_size);
	text[size++] = '"';
	made->identity_size = size;
}

static void make_flow_uid(const struct converter *converter, const struct rule *rule,
			  const struct packet *packet, struct made *made)
{
	uint8_t hashed[SHA1_LONGEST];
	size_t size = put(hashed, converter->uid_start, 16);
	int has_owner = packet->uid.at != NULL && !rule->is_ownerless;

	size += put(hashed + size, rule->flow_start.at, rule->flow_start.size);
	size += put_span(hashed + size, has_owner ? packet->uid : (struct span){ 0 }, "null");
	hashed[size++] = ',';
	size += put_number(hashed + size, packet->protocol);
	size += put_text(hashed + size, ",\"");
	size += put(hashed + size, packet->destination.text, packet->destination.text_size);
	size += put_text(hashed + size, "\",");
	size += put_span(hashed + size, packet->destination_port_text, "null");
	hashed[size++] = ']';
	put_uuid(made->flow_uid, hashed, size);
}

static size_t put_quoted(uint8_t *to, struct span span)
{
	to[0] = '"';
	memcpy(to + 1, span.at, span.size);
	to[span.size + 1] = '"';
	return span.size + 2;
}

static size_t put_details(uint8_t *to, const struct packet *packet)
{
	size_t size = put_text(to, "\"packet\":{");

	/* Without the first comma. */
	size += put(to + size, packet->details + 1, packet->details_size - 1);
	return size + put_text(to + size, "},");
}

static size_t put_slot(uint8_t *to, int32_t slot, struct span line, const struct header *header,
		       const struct packet *packet, const struct rule *rule,
		       const struct made *made)
{
	switch (slot) {
	case SOURCE_PORT:
		return put_span(to, packet->source_port_text, "");
	case DESTINATION_PORT:
		return put_span(to, packet->destination_port_text, "");
	case SOURCE:
		return put(to, packet->source.text, packet->source.text_size);
	case DESTINATION:
		return put(to, packet->destination.text, packet->destination.text_size);
	case UID:
		return put_span(to, packet->uid, "");
	case GID:
		return put_span(to, packet->gid, "");
	case TCP_FLAGS:
		return put_number(to, packet->tcp_flags);
	case LENGTH:
		return put_span(to, packet->length, "");
	case TIME:
	case START:
	case END:
		return put_number(to, made->time_ms);
	case DURATION:
		return put_number(to, 0);
	case EVENT_UID:
		return put(to, made->event_uid, sizeof(made->event_uid));
	case FLOW_UID:
		return put(to, made->flow_uid, sizeof(made->flow_uid));
	case COMMUNITY_ID:
		return put(to, made->community_id, sizeof(made->community_id));
	case RAW_SIZE:
		return put_number(to, line.size);
	case RAW:
		return put_quoted(to, line);
	case DETAILS:
		return put_details(to, packet);
	case ORIGINAL_TIME:
		return put_quoted(to, header->stamp);
	case IDENTITY:
		return put(to, made->identity, made->identity_size);
	case SEQUENCE:
		return put_span(to, header->sequence, "");
	case RECEIVED:
		return put_number(to, made->received_ms);
	case PROCESSED:
		return put_number(to, made->processed_ms);
	case SOURCE_MAC:
		return put_span(to, packet->mac_source, "");
	case DESTINATION_MAC:
		return put_span(to, packet->mac_destination, "");
	}
	if (slot < 0 || (size_t)slot >= rule->values_size)
		return 0;
	return put(to, rule->values[slot].at, rule->values[slot].size);
}

/* Return an upper limit of the size of an event with a line end. */
static size_t size_limit(const struct stored_template *template, const struct rule *rule,
			 struct span line)
{
	size_t size = template->size + 1;

	for (size_t at = 0; at < template->pieces_size; at++) {
		int32_t slot = template->pieces[at].slot;

		if (slot == RAW || slot == ORIGINAL_TIME)
			size += line.size + 2;
		else if (slot == DETAILS)
			size += LONGEST_DETAILS + 16;
		else if (slot >= 0 && (size_t)slot < rule->values_size)
			size += rule->values[slot].size;
		/* The longest other value is an identity. */
		size += 96;
	}
	return size;
}

/* Return 1 if the general code must see a line because of its first bytes. */
static int has_odd_start(struct span line)
{
	static const char CURSOR[] = "__CURSOR=", NFLOG[] = "NFLOG group=";

	if (line.size > 0 && *line.at == '{')
		return 1;
	return (line.size >= sizeof(CURSOR) - 1 && !memcmp(line.at, CURSOR, sizeof(CURSOR) - 1))
	       || (line.size >= sizeof(NFLOG) - 1 && !memcmp(line.at, NFLOG, sizeof(NFLOG) - 1));
}

/* Return 1 if a byte of a line must be escaped, in JSON or for a terminal. */
static int has_unusual_byte(struct span line)
{
	uint8_t found = 0;

	for (uint32_t at = 0; at < line.size; at++) {
		uint8_t byte = line.at[at];

		found |= (uint8_t)(byte - 0x20) > 0x5e;
		found |= byte == '"';
		found |= byte == '\\';
	}
	return found;
}

static int is_candidate(struct span line)
{
	return memmem(line.at, line.size, "IN=", 3) != NULL
	       || memmem(line.at, line.size, "ocsf-nft:", 9) != NULL;
}

/* Return 1 if a line begins as a record of /dev/kmsg (parse() in ocsf_nft/sources/kmsg_line.py). */
static int is_of_kmsg(struct span line)
{
	static const uint32_t DIGITS[] = { 10, 19, 16 };
	/* The largest sequence number: INT64_MAX, which has 19 digits. */
	static const char MOST[] = "9223372036854775807";
	uint32_t at = 0;

	for (size_t number = 0; number < 3; number++) {
		uint32_t start = at;

		while (at < line.size && line.at[at] >= '0' && line.at[at] <= '9')
			at++;
		if (at == start || at - start > DIGITS[number] || at == line.size
		    || line.at[at++] != ',')
			return 0;
		if (number == 1 && at - 1 - start == sizeof(MOST) - 1
		    && memcmp(line.at + start, MOST, sizeof(MOST) - 1) > 0)
			return 0;
	}
	return memchr(line.at + at, ';', line.size - at) != NULL;
}

static int is_indented(struct span line)
{
	return line.size > 0 && (*line.at == ' ' || *line.at == '\t');
}

/* Return 1 if a line has the form of a later line of /dev/kmsg (_DICTIONARY in
 * ocsf_nft/sources/replay/source.py). */
static int is_of_dictionary(struct span line)
{
	uint32_t at = 1;

	while (at < line.size && ((line.at[at] >= 'A' && line.at[at] <= 'Z') || line.at[at] == '_'))
		at++;
	return line.size > 0 && *line.at == ' ' && at > 1 && at < line.size && line.at[at] == '=';
}

static size_t rule_key(const struct header *header, const struct packet *packet,
		       uint8_t key[LONGEST_KEY])
{
	size_t size = 0;

	key[size++] = (uint8_t)header->kind;
	key[size++] = packet->version;
	size += put_span(key + size, header->host, "");
	key[size++] = '\0';
	size += put(key + size, packet->rule.at, packet->rule.size);
	return size;
}

static size_t stamp_key(const struct header *header, uint8_t key[LONGEST_KEY])
{
	size_t size = put(key, header->whole_seconds.at, header->whole_seconds.size);

	return size + put_span(key + size, header->zone, "");
}

/* Set the time of a line. Return IS_DONE, or the reason why it is unknown. */
static enum state find_time(struct converter *converter, const struct header *header,
			    struct run *run, int64_t *time_ns)
{
	if (header->whole_seconds.at != NULL) {
		const int64_t *found;

		run->key_size = stamp_key(header, run->key);
		found = table_get(converter->stamps, run->key, run->key_size);
		if (found == NULL)
			return IS_NEW_STAMP;
		*time_ns = *found + header->fraction_ns;
		return IS_DONE;
	}
	if (__builtin_mul_overflow((int64_t)header->since_boot_us, 1000, time_ns)
	    || __builtin_add_overflow(*time_ns, converter->boot_ns, time_ns))
		return IS_ODD;
	return *time_ns < 0 || *time_ns > run->latest_ns ? IS_ODD : IS_DONE;
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Convert one line; return IS_DONE, or the reason why it is not converted. */
static enum state convert_line(struct converter *converter, struct run *run, struct span line,
			       enum log_kind *kind)
{
	struct header header;
	struct packet packet;
	struct form form;
	struct made made;
	const struct rule *rule;
	const struct stored_template *template;
	enum state state;
	int64_t time_ns;
	uint8_t *to;

	if (line.size > LONGEST_LINE || has_unusual_byte(line) || !parse_header(line, &header)
	    || !parse_packet(header.message, &packet))
		return IS_ODD;
	*kind = header.kind;
	state = find_time(converter, &header, run, &time_ns);
	if (state != IS_DONE)
		return state;
	run->key_size = rule_key(&header, &packet, run->key);
	rule = table_get(converter->rules, run->key, run->key_size);
	if (rule == NULL)
		return IS_NEW_RULE;
	if (rule->is_filtered)
		return IS_DONE;
	make_form(converter, rule, &packet, &form);
	template = table_get(converter->templates, &form, sizeof(form));
	if (template == NULL) {
		run->key_size = put(run->key, &form, sizeof(form));
		return IS_NEW_FORM;
	}
	if (template->pieces_size == 0)
		return IS_ODD;
	if (size_limit(template, rule, line) > run->output_size - run->written)
		return IS_FULL;
	made.time_ms = time_ns / NS_PER_MS;
	made.received_ms = run->received_ns / NS_PER_MS;
	made.processed_ms = (run->processed_ns ? run->processed_ns : now_ns()) / NS_PER_MS;
	make_identity(converter, line, &header, run->number, &made);
	make_flow_uid(converter, rule, &packet, &made);
	make_community_id(&packet, made.community_id);
	to = run->output + run->written;
	for (size_t at = 0; at < template->pieces_size; at++) {
		const struct piece *piece = &template->pieces[at];

		to += put(to, piece->literal.at, piece->literal.size);
		to += put_slot(to, piece->slot, line, &header, &packet, rule, &made);
	}
	*to++ = '\n';
	run->written = (size_t)(to - run->output);
	return IS_DONE;
}

void convert(struct converter *converter, struct run *run)
{
	const uint8_t *start = run->input.at, *end = start + run->input.size, *line_end;
	const uint8_t *at = start + run->start;

	run->written = 0;
	run->lines = run->records = run->skipped = 0;
	run->state = IS_DONE;
	for (; at < end && (line_end = memchr(at, '\n', (size_t)(end - at))) != NULL;
	     at = line_end + 1) {
		struct span line = { at, (uint32_t)(line_end - at) };
		enum log_kind kind = LOG_DMESG;
		struct bytes text;

		if (line_end - at > LONGEST_LINE || has_odd_start(line)) {
			run->state = IS_ODD;
			break;
		}
		if (!is_candidate(line)) {
			if (is_indented(line))
				run->is_after_kmsg = run->is_after_kmsg && is_of_dictionary(line);
			else
				run->is_after_kmsg = (uint32_t)is_of_kmsg(line);
			run->lines++;
			run->skipped++;
			continue;
		}
		if (is_indented(line)) {
			run->state = IS_ODD;
			break;
		}
		text = without_returns((struct bytes){ line.at, line.size });
		if (run->number == 0 && is_counted(text))
			run->number = count_line(run->counts, text);
		run->state = convert_line(converter, run, line, &kind);
		if (run->state != IS_DONE)
			break;
		run->number = 0;
		run->is_after_kmsg = kind == LOG_KMSG;
		run->lines++;
		run->records++;
	}
	run->end = (size_t)(at - start);
}
