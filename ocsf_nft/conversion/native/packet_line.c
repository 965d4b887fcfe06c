/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* memmem() */
#include "packet_line.h"

#include <string.h>

#define LONGEST_PREFIX 127 /* NF_LOG_PREFIXLEN less the NUL */
#define LONGEST_DEVICE 64

enum {
	ICMP = 1,
	TCP = 6,
	UDP = 17,
	ESP = 50,
	AH = 51,
	ICMPV6 = 58,
	UDPLITE = 136,
};

struct cursor {
	const uint8_t *at;
	const uint8_t *end;
};

static int take(struct cursor *cursor, const char *word, size_t size)
{
	if ((size_t)(cursor->end - cursor->at) < size || memcmp(cursor->at, word, size) != 0)
		return 0;
	cursor->at += size;
	return 1;
}

/* ``word`` is a literal. */
#define TAKE(cursor, word) take(cursor, word, sizeof(word) - 1)

static int is_digit(uint8_t character)
{
	return character >= '0' && character <= '9';
}

/* Digits of a hexadecimal number in lower case; -1 for another character. */
static int hex_digit(uint8_t character)
{
	if (is_digit(character))
		return character - '0';
	return character >= 'a' && character <= 'f' ? character - 'a' + 10 : -1;
}

/* Take decimal digits, without a zero before others. */
static int take_digits(struct cursor *cursor, uint64_t limit, struct span *text, uint64_t *number)
{
	const uint8_t *start = cursor->at, *at = start;
	uint64_t value = 0;

	while (at < cursor->end && is_digit(*at) && at - start < 19)
		value = value * 10 + (uint64_t)(*at++ - '0');
	if (at == start || (*start == '0' && at - start > 1) || value > limit)
		return 0;
	text->at = start;
	text->size = (uint32_t)(at - start);
	*number = value;
	cursor->at = at;
	return 1;
}

/* Take decimal digits and the space after them, which shows that none is cut off. */
static int take_number(struct cursor *cursor, uint64_t limit, struct span *text, uint64_t *number)
{
	return take_digits(cursor, limit, text, number) && TAKE(cursor, " ");
}

static void add(struct packet *packet, const char *text, size_t size)
{
	memcpy(packet->details + packet->details_size, text, size);
	packet->details_size += (uint32_t)size;
}

/* ``name`` is a literal: a comma, and the name of a JSON member with its colon. */
#define ADD(packet, name, value) \
	do { \
		add(packet, name, sizeof(name) - 1); \
		add(packet, (const char *)(value).at, (value).size); \
	} while (0)
#define ADD_NUMBER(packet, name, number) \
	do { \
		add(packet, name, sizeof(name) - 1); \
		add_number(packet, number); \
	} while (0)
#define ADD_TRUE(packet, name) add(packet, name "true", sizeof(name "true") - 1)

static void add_number(struct packet *packet, uint32_t number)
{
	char digits[10];
	int at = sizeof(digits);

	do
		digits[--at] = (char)('0' + number % 10);
	while ((number /= 10) > 0);
	add(packet, digits + at, sizeof(digits) - (size_t)at);
}

/* Take the thread or processor that printed the message, if the kernel names it: ``[ T1]``, ``[ C0]``. */
static int take_caller(struct cursor *cursor)
{
	const uint8_t *digits;

	if (!TAKE(cursor, "["))
		return 1;
	while (cursor->at < cursor->end && *cursor->at == ' ')
		cursor->at++;
	if (!TAKE(cursor, "T") && !TAKE(cursor, "C"))
		return 0;
	for (digits = cursor->at; cursor->at < cursor->end && is_digit(*cursor->at);)
		cursor->at++;
	return cursor->at > digits && TAKE(cursor, "]");
}

static int take_monotonic(struct cursor *cursor, struct header *header)
{
	uint64_t seconds = 0, microseconds = 0;
	const uint8_t *start = cursor->at, *digits;

	if (!TAKE(cursor, "["))
		return 0;
	while (cursor->at < cursor->end && *cursor->at == ' ')
		cursor->at++;
	for (digits = cursor->at; cursor->at < cursor->end && is_digit(*cursor->at); cursor->at++) {
		if (cursor->at - digits == 10)
			return 0;
		seconds = seconds * 10 + (uint64_t)(*cursor->at - '0');
	}
	if (cursor->at == digits || !TAKE(cursor, "."))
		return 0;
	for (digits = cursor->at; cursor->at < cursor->end && is_digit(*cursor->at); cursor->at++) {
		if (cursor->at - digits == 6)
			return 0;
		microseconds = microseconds * 10 + (uint64_t)(*cursor->at - '0');
	}
	if (cursor->at - digits != 6 || !TAKE(cursor, "]"))
		return 0;
	header->stamp.at = start;
	header->stamp.size = (uint32_t)(cursor->at - start);
	header->since_boot_us = seconds * 1000000 + microseconds;
	return take_caller(cursor) && TAKE(cursor, " ");
}

/* Take ``4,1234,5678901,-;``: facility and level, sequence number, microseconds since boot, flags. */
static int take_kmsg(struct cursor *cursor, struct header *header)
{
	struct span priority;
	uint64_t number;

	/* Below 8 the facility is 0: the kernel wrote the message. */
	if (!take_digits(cursor, 7, &priority, &number) || !TAKE(cursor, ","))
		return 0;
	if (!take_digits(cursor, INT64_MAX, &header->sequence, &number) || !TAKE(cursor, ","))
		return 0;
	if (!take_digits(cursor, 9999999999999999, &header->stamp, &header->since_boot_us))
		return 0;
	if (!TAKE(cursor, ","))
		return 0;
	for (; cursor->at < cursor->end && *cursor->at != ';'; cursor->at++)
		/* The general parser redacts the whole line in this case (``_has_more``). */
		if (*cursor->at == '=')
			return 0;
	return TAKE(cursor, ";");
}

static int take_form(struct cursor *cursor, const char *form)
{
	const uint8_t *at = cursor->at;

	for (; *form != '\0'; form++, at++) {
		if (at == cursor->end || (*form == '0' ? !is_digit(*at) : *at != (uint8_t)*form))
			return 0;
	}
	cursor->at = at;
	return 1;
}

/* Take one of the words of three letters. */
static int take_word(struct cursor *cursor, const char *words)
{
	if (cursor->end - cursor->at < 3)
		return 0;
	for (; *words != '\0'; words += 3)
		if (memcmp(cursor->at, words, 3) == 0) {
			cursor->at += 3;
			return 1;
		}
	return 0;
}

/* Take ``Nov  1 12:34:56``. */
static int take_date(struct cursor *cursor)
{
	return take_word(cursor, "JanFebMarAprMayJunJulAugSepOctNovDec")
	       && (take_form(cursor, " 00 ") || take_form(cursor, "  0 "))
	       && take_form(cursor, "00:00:00");
}

static struct span span_from(const uint8_t *start, const struct cursor *cursor)
{
	return (struct span){ start, (uint32_t)(cursor->at - start) };
}

static void take_fraction(struct cursor *cursor, struct header *header)
{
	struct cursor next = *cursor;
	uint32_t digits = 0;

	if (!TAKE(&next, ".") && !TAKE(&next, ","))
		return;
	header->fraction_ns = 0;
	for (; next.at < next.end && is_digit(*next.at) && digits < 9; next.at++, digits++)
		header->fraction_ns = header->fraction_ns * 10 + (uint32_t)(*next.at - '0');
	for (uint32_t missing = digits; missing < 9; missing++)
		header->fraction_ns *= 10;
	if (digits > 0)
		*cursor = next;
}

/* Take a timestamp of syslog, ISO 8601 or ``Nov  1 12:34:56``. The general parser checks its value:
 * here only its form decides. */
static int take_syslog_stamp(struct cursor *cursor, struct header *header)
{
	const uint8_t *start = cursor->at;

	if (take_form(cursor, "0000-00-00T00:00:00")) {
		header->whole_seconds = span_from(start, cursor);
		if (cursor->at < cursor->end && *cursor->at == '.')
			take_fraction(cursor, header);
		header->zone.at = cursor->at;
		if (!TAKE(cursor, "Z") && !take_form(cursor, "+00:00"))
			take_form(cursor, "-00:00");
		header->zone.size = (uint32_t)(cursor->at - header->zone.at);
	} else {
		if (!take_date(cursor))
			return 0;
		header->whole_seconds = span_from(start, cursor);
		if (cursor->at < cursor->end && *cursor->at == '.')
			take_fraction(cursor, header);
	}
	header->stamp = span_from(start, cursor);
	return TAKE(cursor, " ");
}

/* Take ``[Sun Nov  1 12:34:56 2026]``, of dmesg -T. */
static int take_human(struct cursor *cursor, struct header *header)
{
	const uint8_t *start = cursor->at;

	if (!TAKE(cursor, "[") || !take_word(cursor, "MonTueWedThuFriSatSun") || !TAKE(cursor, " ")
	    || !take_date(cursor) || !take_form(cursor, " 0000]"))
		return 0;
	header->whole_seconds = header->stamp = span_from(start, cursor);
	return TAKE(cursor, " ");
}

/* Take ``2026-11-01T12:34:56,123456+01:00``, of dmesg --time-format iso. */
static int take_dmesg_iso(struct cursor *cursor, struct header *header)
{
	const uint8_t *start = cursor->at;
	struct cursor fraction;

	if (!take_form(cursor, "0000-00-00T00:00:00"))
		return 0;
	header->whole_seconds = span_from(start, cursor);
	fraction = *cursor;
	if (!take_form(cursor, ",000000"))
		return 0;
	take_fraction(&fraction, header);
	header->zone.at = cursor->at;
	if (!take_form(cursor, "+00:00") && !take_form(cursor, "-00:00"))
		return 0;
	header->zone.size = (uint32_t)(cursor->at - header->zone.at);
	header->stamp = span_from(start, cursor);
	return TAKE(cursor, " ");
}

/* Take what shows that the kernel wrote the message: ``<4>`` of dmesg -r and of syslog. Below 8 the
 * facility is 0. */
static int take_priority(struct cursor *cursor)
{
	if (cursor->end - cursor->at < 3 || cursor->at[0] != '<' || cursor->at[1] < '0'
	    || cursor->at[1] > '7' || cursor->at[2] != '>')
		return 0;
	cursor->at += 3;
	return 1;
}

/* Take ``kern  :warn  : ``, of dmesg -x. */
static int take_decoded(struct cursor *cursor)
{
	static const char *const LEVELS[] = { "emerg", "alert",  "crit", "err",
					      "warn",  "notice", "info", "debug" };
	struct cursor next = *cursor;

	if (!TAKE(&next, "kern"))
		return 0;
	while (next.at < next.end && *next.at == ' ')
		next.at++;
	if (!TAKE(&next, ":"))
		return 0;
	for (size_t level = 0; level < sizeof(LEVELS) / sizeof(*LEVELS); level++) {
		struct cursor rest = next;

		if (!take_form(&rest, LEVELS[level]))
			continue;
		while (rest.at < rest.end && *rest.at == ' ')
			rest.at++;
		if (!TAKE(&rest, ": "))
			return 0;
		*cursor = rest;
		return 1;
	}
	return 0;
}

/* Take a host and the program's name: ``host kernel: ``. */
static int take_host(struct cursor *cursor, struct header *header)
{
	header->host.at = cursor->at;
	for (; cursor->at < cursor->end && *cursor->at != ' '; cursor->at++)
		/* The general parser redacts the whole line in this case (``_has_more``). */
		if (*cursor->at == '=')
			return 0;
	header->host.size = (uint32_t)(cursor->at - header->host.at);
	return header->host.size > 0 && header->host.size <= LONGEST_HOST
	       && TAKE(cursor, " kernel: ");
}

/* Return 1 if the kernel's timestamp may follow: a prefix such as ``[UFW BLOCK]`` is none. */
static int is_monotonic(struct cursor cursor)
{
	if (!TAKE(&cursor, "["))
		return 0;
	while (cursor.at < cursor.end && *cursor.at == ' ')
		cursor.at++;
	return cursor.at < cursor.end && is_digit(*cursor.at);
}

/* Take a header of dmesg, after the facility. */
static int take_dmesg(struct cursor *cursor, struct header *header)
{
	header->kind = LOG_DMESG;
	if (*cursor->at != '[')
		return take_dmesg_iso(cursor, header);
	return is_monotonic(*cursor) ? take_monotonic(cursor, header) : take_human(cursor, header);
}

/* Take a header of syslog, after the priority. */
static int take_syslog(struct cursor *cursor, struct header *header)
{
	struct header inner;

	header->kind = LOG_SYSLOG;
	if (!take_syslog_stamp(cursor, header) || !take_host(cursor, header))
		return 0;
	/* rsyslog leaves the kernel's own timestamp in the message. */
	return !is_monotonic(*cursor) || take_monotonic(cursor, &inner);
}

static int is_form(struct cursor cursor, const char *form)
{
	return take_form(&cursor, form);
}

int parse_header(struct span line, struct header *header)
{
	struct cursor cursor = { line.at, line.at + line.size };
	int has_facility, is_taken;

	memset(header, 0, sizeof(*header));
	has_facility = take_priority(&cursor);
	has_facility |= take_decoded(&cursor);
	if (cursor.at == cursor.end)
		return 0;
	if (*cursor.at == '[' || is_form(cursor, "0000-00-00T00:00:00,")) {
		is_taken = take_dmesg(&cursor, header);
	} else if (is_digit(*cursor.at) && !is_form(cursor, "0000-")) {
		header->kind = LOG_KMSG;
		is_taken = !has_facility && take_kmsg(&cursor, header);
	} else {
		is_taken = take_syslog(&cursor, header);
	}
	header->message.at = cursor.at;
	header->message.size = (uint32_t)(cursor.end - cursor.at);
	return is_taken;
}

static int take_device(struct cursor *cursor)
{
	const uint8_t *start = cursor->at;

	for (; cursor->at < cursor->end && *cursor->at != ' '; cursor->at++)
		if (*cursor->at == '/' || *cursor->at == ':' || cursor->at - start == LONGEST_DEVICE)
			return 0;
	return TAKE(cursor, " ");
}

/* Take the log prefix and both devices. */
static int take_rule(struct cursor *cursor, struct packet *packet)
{
	const uint8_t *start = cursor->at, *in = NULL;

	for (const uint8_t *at = start; cursor->end - at > 2; at++) {
		if (at[0] == 'I' && at[1] == 'N' && at[2] == '=') {
			in = at;
			break;
		}
		/* The general parser redacts such a line (``_has_more``). */
		if (*at == '=' || at - start > LONGEST_PREFIX)
			return 0;
	}
	if (in == NULL)
		return 0;
	cursor->at = in + 3;
	/* A second ``IN=`` may be the begin of the packet, too. */
	if (memmem(cursor->at, (size_t)(cursor->end - cursor->at), "IN=", 3) != NULL)
		return 0;
	if (!take_device(cursor) || !TAKE(cursor, "OUT=") || !take_device(cursor))
		return 0;
	packet->rule.at = start;
	packet->rule.size = (uint32_t)(cursor->at - 1 - start);
	return 1;
}

static int take_mac(struct cursor *cursor, struct span *text)
{
	text->at = cursor->at;
	text->size = 17;
	if (cursor->end - cursor->at < 17)
		return 0;
	for (int at = 0; at < 17; at++)
		if (at % 3 == 2 ? cursor->at[at] != ':' : hex_digit(cursor->at[at]) < 0)
			return 0;
	cursor->at += 17;
	return 1;
}

/* Take hexadecimal digits. */
static int take_hex(struct cursor *cursor, int digits, uint32_t *number)
{
	*number = 0;
	if (cursor->end - cursor->at < digits)
		return 0;
	for (int at = 0; at < digits; at++) {
		int digit = hex_digit(*cursor->at++);

		if (digit < 0)
			return 0;
		*number = *number << 4 | (uint32_t)digit;
	}
	return 1;
}

static int take_link(struct cursor *cursor, struct packet *packet)
{
	uint32_t high, low;

	if (TAKE(cursor, "MAC=")) {
		if (!take_mac(cursor, &packet->mac_destination) || !TAKE(cursor, ":"))
			return 0;
		if (!take_mac(cursor, &packet->mac_source) || !TAKE(cursor, ":"))
			return 0;
		if (!take_hex(cursor, 2, &high) || !TAKE(cursor, ":") || !take_hex(cursor, 2, &low))
			return 0;
	} else if (TAKE(cursor, "MACSRC=")) {
		if (!take_mac(cursor, &packet->mac_source) || !TAKE(cursor, " MACDST="))
			return 0;
		if (!take_mac(cursor, &packet->mac_destination) || !TAKE(cursor, " MACPROTO="))
			return 0;
		if (!take_hex(cursor, 2, &high) || !take_hex(cursor, 2, &low))
			return 0;
	} else {
		return 1;
	}
	packet->has_macs = 1;
	packet->ethertype = (uint16_t)(high << 8 | low);
	return TAKE(cursor, " ");
}

static int take_ipv4(struct cursor *cursor, struct address *address)
{
	const uint8_t *start = cursor->at;
	struct span digits;
	uint64_t byte;

	for (int at = 0; at < 4; at++) {
		if (at > 0 && !TAKE(cursor, "."))
			return 0;
		if (!take_digits(cursor, 255, &digits, &byte))
			return 0;
		address->bytes[at] = (uint8_t)byte;
	}
	address->text_size = (uint8_t)(cursor->at - start);
	memcpy(address->text, start, address->text_size);
	return TAKE(cursor, " ");
}

/* IPv6 addresses that may have an IPv4 address in them, as in ocsf_nft/cloud_metadata.py: the general
 * code checks that one, too. */
static int may_have_ipv4(const uint8_t bytes[16])
{
	static const uint8_t ZEROS[8];
	uint32_t start = (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16
			 | (uint32_t)bytes[2] << 8 | bytes[3];

	return memcmp(bytes, ZEROS, 8) == 0 || start == 0x0064ff9b || start == 0x20010000
	       || start >> 16 == 0x2002;
}

/* Take an IPv6 address as the kernel writes it: eight groups of four digits. */
static int take_ipv6(struct cursor *cursor, struct address *address)
{
	static const char HEX[] = "0123456789abcdef";
	uint32_t groups[8];
	int run = -1, longest = 1, at;
	uint8_t *text = address->text;

	for (at = 0; at < 8; at++) {
		if (at > 0 && !TAKE(cursor, ":"))
			return 0;
		if (!take_hex(cursor, 4, &groups[at]))
			return 0;
		address->bytes[2 * at] = (uint8_t)(groups[at] >> 8);
		address->bytes[2 * at + 1] = (uint8_t)groups[at];
	}
	if (!TAKE(cursor, " ") || may_have_ipv4(address->bytes))
		return 0;
	/* RFC 5952, 4.2: ``::`` stands for the first longest run of two zeros or more. */
	for (at = 0; at < 8; at++) {
		int end = at;

		while (end < 8 && groups[end] == 0)
			end++;
		if (end - at > longest) {
			longest = end - at;
			run = at;
		}
		if (end > at)
			at = end;
	}
	for (at = 0; at < 8; at++) {
		int shift = 12;

		if (at == run) {
			*text++ = ':';
			if (at + longest == 8)
				*text++ = ':';
			at += longest - 1;
			continue;
		}
		if (at > 0)
			*text++ = ':';
		while (shift > 0 && groups[at] >> shift == 0)
			shift -= 4;
		for (; shift >= 0; shift -= 4)
			*text++ = (uint8_t)HEX[groups[at] >> shift & 0xf];
	}
	address->text_size = (uint8_t)(text - address->text);
	return 1;
}

static int take_addresses(struct cursor *cursor, struct packet *packet)
{
	struct cursor start;

	if (!TAKE(cursor, "SRC="))
		return 0;
	start = *cursor;
	if (take_ipv4(cursor, &packet->source)) {
		packet->version = 4;
		return TAKE(cursor, "DST=") && take_ipv4(cursor, &packet->destination);
	}
	*cursor = start;
	packet->version = 6;
	return take_ipv6(cursor, &packet->source) && TAKE(cursor, "DST=")
	       && take_ipv6(cursor, &packet->destination);
}

static int is_hex_of(uint8_t character, const char *allowed)
{
	return character != '\0' && strchr(allowed, character) != NULL;
}

static int upper_hex(uint8_t character)
{
	return is_digit(character) ? character - '0' : character - 'A' + 10;
}

static int take_ipv4_header(struct cursor *cursor, struct packet *packet)
{
	struct span text;
	uint64_t number;
	uint32_t tos;

	if (!TAKE(cursor, "TOS=0x") || cursor->end - cursor->at < 12)
		return 0;
	if (!is_hex_of(cursor->at[0], "01") || !is_hex_of(cursor->at[1], "02468ACE"))
		return 0;
	tos = (uint32_t)(cursor->at[0] - '0') << 4 | (uint32_t)upper_hex(cursor->at[1]);
	cursor->at += 2;
	if (!TAKE(cursor, " PREC=0x") || cursor->at == cursor->end
	    || !is_hex_of(*cursor->at, "02468ACE"))
		return 0;
	tos |= (uint32_t)upper_hex(*cursor->at++) << 4;
	if (!TAKE(cursor, "0 "))
		return 0;
	ADD_NUMBER(packet, ",\"tos\":", tos);
	if (!TAKE(cursor, "TTL=") || !take_number(cursor, 0xff, &text, &number))
		return 0;
	ADD(packet, ",\"ttl\":", text);
	if (!TAKE(cursor, "ID=") || !take_number(cursor, 0xffff, &text, &number))
		return 0;
	ADD(packet, ",\"ip_id\":", text);
	if (TAKE(cursor, "CE "))
		ADD_TRUE(packet, ",\"congestion\":");
	if (TAKE(cursor, "DF "))
		ADD_TRUE(packet, ",\"dont_fragment\":");
	if (TAKE(cursor, "MF ")) {
		ADD_TRUE(packet, ",\"more_fragments\":");
		packet->fragment |= MORE_FRAGMENTS;
	}
	if (TAKE(cursor, "FRAG:")) {
		if (!take_number(cursor, 0x1fff, &text, &number) || number == 0)
			return 0;
		ADD_NUMBER(packet, ",\"fragment_offset\":", (uint32_t)number * 8);
		packet->fragment |= FRAGMENT_OFFSET;
	}
	return 1;
}

static int take_ipv6_header(struct cursor *cursor, struct packet *packet)
{
	struct span text;
	uint64_t number;

	if (!TAKE(cursor, "TC=") || !take_number(cursor, 0xff, &text, &number))
		return 0;
	ADD(packet, ",\"traffic_class\":", text);
	if (!TAKE(cursor, "HOPLIMIT=") || !take_number(cursor, 0xff, &text, &number))
		return 0;
	ADD(packet, ",\"hop_limit\":", text);
	if (!TAKE(cursor, "FLOWLBL=") || !take_number(cursor, 0xfffff, &text, &number))
		return 0;
	ADD(packet, ",\"flow_label\":", text);
	return 1;
}

static int take_ports(struct cursor *cursor, struct packet *packet)
{
	uint64_t source, destination;

	if (!TAKE(cursor, "SPT=")
	    || !take_number(cursor, 0xffff, &packet->source_port_text, &source))
		return 0;
	if (!TAKE(cursor, "DPT=")
	    || !take_number(cursor, 0xffff, &packet->destination_port_text, &destination))
		return 0;
	packet->source_port = (uint16_t)source;
	packet->destination_port = (uint16_t)destination;
	packet->has = HAS_PORTS;
	return 1;
}

static int take_tcp_options(struct cursor *cursor, struct packet *packet)
{
	const uint8_t *start;

	if (!TAKE(cursor, "OPT ("))
		return 1;
	for (start = cursor->at; cursor->at < cursor->end && *cursor->at != ')'; cursor->at++)
		if (!is_digit(*cursor->at) && !(*cursor->at >= 'A' && *cursor->at <= 'F'))
			return 0;
	if ((cursor->at - start) % 2 || cursor->at == start || cursor->at - start > 80)
		return 0;
	add(packet, ",\"tcp_options\":\"", sizeof(",\"tcp_options\":\"") - 1);
	for (const uint8_t *at = start; at < cursor->at; at++)
		packet->details[packet->details_size++] = (char)(*at | 0x20);
	add(packet, "\"", 1);
	return TAKE(cursor, ") ");
}

static int take_tcp(struct cursor *cursor, struct packet *packet)
{
	static const char *const FLAGS[] = {
		"AE ", "CWR ", "ECE ", "URG ", "ACK ", "PSH ", "RST ", "SYN ", "FIN ",
	};
	struct span window, urgent, sequence = { 0 }, acknowledgment = { 0 };
	uint64_t number;
	uint32_t reserved;
	/* The general parser has two orders: one for packets that are no fragments. */
	int is_usual = packet->fragment == 0
		       && memmem(packet->details, packet->details_size, "congestion", 10) == NULL;

	if (!take_ports(cursor, packet))
		return 0;
	if (TAKE(cursor, "SEQ=")) {
		if (!take_number(cursor, UINT32_MAX, &sequence, &number))
			return 0;
		if (!TAKE(cursor, "ACK=")
		    || !take_number(cursor, UINT32_MAX, &acknowledgment, &number))
			return 0;
	}
	if (!TAKE(cursor, "WINDOW=") || !take_number(cursor, 0xffff, &window, &number))
		return 0;
	if (!TAKE(cursor, "RES=0x") || cursor->end - cursor->at < 3)
		return 0;
	if (!is_hex_of(cursor->at[0], "0123") || !is_hex_of(cursor->at[1], "048c"))
		return 0;
	reserved = (uint32_t)hex_digit(cursor->at[0]) << 4 | (uint32_t)hex_digit(cursor->at[1]);
	cursor->at += 2;
	if (!TAKE(cursor, " "))
		return 0;
	packet->tcp_flags = reserved & 4 ? 256 : 0;
	for (int at = 0; at < 9; at++)
		if (take(cursor, FLAGS[at], strlen(FLAGS[at])))
			packet->tcp_flags |= 256 >> at;
	if (!TAKE(cursor, "URGP=") || !take_number(cursor, 0xffff, &urgent, &number))
		return 0;
	if (!is_usual && sequence.at != NULL) {
		ADD(packet, ",\"tcp_sequence\":", sequence);
		ADD(packet, ",\"tcp_acknowledgment\":", acknowledgment);
	}
	ADD(packet, ",\"tcp_window\":", window);
	ADD_NUMBER(packet, ",\"tcp_reserved\":", reserved >> 3);
	ADD(packet, ",\"tcp_urgent_pointer\":", urgent);
	if (is_usual && sequence.at != NULL) {
		ADD(packet, ",\"tcp_sequence\":", sequence);
		ADD(packet, ",\"tcp_acknowledgment\":", acknowledgment);
	}
	return take_tcp_options(cursor, packet);
}

static int take_udp(struct cursor *cursor, struct packet *packet)
{
	struct span text;
	uint64_t number;

	if (!take_ports(cursor, packet) || !TAKE(cursor, "LEN=")
	    || !take_number(cursor, 0xffff, &text, &number))
		return 0;
	ADD(packet, ",\"udp_length\":", text);
	return 1;
}

/* Take an ICMP message without another packet in it. */
static int take_icmp(struct cursor *cursor, struct packet *packet)
{
	struct span type_text, code_text, text;
	uint64_t type, code, number;
	int is_echo;

	if (!TAKE(cursor, "TYPE=") || !take_number(cursor, 0xff, &type_text, &type))
		return 0;
	if (!TAKE(cursor, "CODE=") || !take_number(cursor, 0xff, &code_text, &code))
		return 0;
	ADD(packet, ",\"icmp_type\":", type_text);
	ADD(packet, ",\"icmp_code\":", code_text);
	if (packet->protocol == ICMP) {
		is_echo = type == 0 || type == 8;
		if (type == 3 || type == 4 || type == 5 || type == 11 || type == 12)
			return 0;
	} else {
		is_echo = type == 128 || type == 129;
		if (type >= 1 && type <= 4)
			return 0;
	}
	packet->has = HAS_ICMP;
	packet->icmp_type = (uint8_t)type;
	packet->icmp_code = (uint8_t)code;
	if (!is_echo)
		return 1;
	if (!TAKE(cursor, "ID=") || !take_number(cursor, 0xffff, &text, &number))
		return 0;
	ADD(packet, ",\"icmp_id\":", text);
	if (!TAKE(cursor, "SEQ=") || !take_number(cursor, 0xffff, &text, &number))
		return 0;
	ADD(packet, ",\"icmp_sequence\":", text);
	return 1;
}

static int take_protocol(struct cursor *cursor, struct packet *packet)
{
	struct span text;
	uint64_t number;
	int is_later = packet->fragment & FRAGMENT_OFFSET;

	if (!TAKE(cursor, "PROTO="))
		return 0;
	if (TAKE(cursor, "TCP ")) {
		packet->protocol = TCP;
		return is_later || take_tcp(cursor, packet);
	}
	if (TAKE(cursor, "UDP ")) {
		packet->protocol = UDP;
		return is_later || take_udp(cursor, packet);
	}
	if (packet->version == 4 ? TAKE(cursor, "ICMP ") : TAKE(cursor, "ICMPv6 ")) {
		packet->protocol = packet->version == 4 ? ICMP : ICMPV6;
		return is_later || take_icmp(cursor, packet);
	}
	if (!take_number(cursor, 0xff, &text, &number))
		return 0;
	packet->protocol = (uint8_t)number;
	/* The kernel names these. */
	return number != ICMP && number != TCP && number != UDP && number != ESP && number != AH
	       && number != ICMPV6 && number != UDPLITE;
}

/* Take the socket's owner and the packet's mark. */
static int take_owner(struct cursor *cursor, struct packet *packet)
{
	uint64_t number;

	if (TAKE(cursor, "UID=")) {
		if (!take_number(cursor, UINT32_MAX, &packet->uid, &number))
			return 0;
		if (!TAKE(cursor, "GID=")
		    || !take_number(cursor, UINT32_MAX, &packet->gid, &number))
			return 0;
	}
	if (TAKE(cursor, "MARK=0x")) {
		uint32_t mark = 0;
		int digits = 0;

		for (; cursor->at < cursor->end && *cursor->at != ' '; cursor->at++, digits++) {
			int digit = hex_digit(*cursor->at);

			if (digit < 0 || digits == 8 || (digit == 0 && digits == 0))
				return 0;
			mark = mark << 4 | (uint32_t)digit;
		}
		if (digits == 0 || !TAKE(cursor, " "))
			return 0;
		ADD_NUMBER(packet, ",\"mark\":", mark);
	}
	return cursor->at == cursor->end;
}

int parse_packet(struct span message, struct packet *packet)
{
	struct cursor cursor = { message.at, message.at + message.size };
	uint64_t number;

	/* All but the details. */
	memset(packet, 0, offsetof(struct packet, details));
	packet->tcp_flags = -1;
	if (!take_rule(&cursor, packet) || !take_link(&cursor, packet)
	    || !take_addresses(&cursor, packet))
		return 0;
	if (!TAKE(&cursor, "LEN=") || !take_number(&cursor, 0xffff, &packet->length, &number))
		return 0;
	if (packet->version == 4 ? !take_ipv4_header(&cursor, packet)
				 : !take_ipv6_header(&cursor, packet))
		return 0;
	return take_protocol(&cursor, packet) && take_owner(&cursor, packet);
}
