/* SPDX-License-Identifier: Apache-2.0 */
/* Parser of the usual log lines about packets, as the kernel writes them (nf_log_syslog.c).
 *
 * It accepts a line only if it can be read in one way. The general parser (ocsf_nft/sources/text)
 * reads all other lines.
 */
#ifndef OCSF_NFT_PACKET_LINE_H
#define OCSF_NFT_PACKET_LINE_H

#include <stddef.h>
#include <stdint.h>

/* Part of a line; ``at`` is NULL if the line has no such part. */
struct span {
	const uint8_t *at;
	uint32_t size;
};

enum log_kind {
	LOG_DMESG,
	LOG_KMSG,
	LOG_SYSLOG,
};

#define LONGEST_HOST 255

/* Start of a line, before the kernel's message. */
struct header {
	enum log_kind kind;
	/* Timestamp, as the event copies it. */
	struct span stamp;
	/* Microseconds since boot, of a stamp that is no date. */
	uint64_t since_boot_us;
	/* Of a date: the stamp without the fraction, whose nanoseconds are apart. */
	struct span whole_seconds;
	struct span zone;
	uint32_t fraction_ns;
	/* Of LOG_SYSLOG. */
	struct span host;
	/* Of LOG_KMSG. */
	struct span sequence;
	struct span message;
};

/* Address in network order and in canonical text (RFC 5952). */
struct address {
	uint8_t bytes[16];
	uint8_t text_size;
	uint8_t text[39];
};

/* Fragment of a packet. */
#define MORE_FRAGMENTS 1
#define FRAGMENT_OFFSET 2

/* TCP, UDP: both ports. ICMP: type and code. */
#define HAS_PORTS 1
#define HAS_ICMP 2

#define LONGEST_DETAILS 512

struct packet {
	/* Log prefix and devices: the message up to the end of ``OUT=…``. */
	struct span rule;
	uint8_t version;
	uint8_t has_macs;
	uint16_t ethertype;
	struct span mac_source;
	struct span mac_destination;
	struct address source;
	struct address destination;
	struct span length;
	uint8_t protocol;
	uint8_t fragment;
	uint8_t has;
	uint8_t icmp_type;
	uint8_t icmp_code;
	uint16_t source_port;
	uint16_t destination_port;
	struct span source_port_text;
	struct span destination_port_text;
	/* -1 without. */
	int32_t tcp_flags;
	struct span uid;
	struct span gid;
	/* Other header values, as the members of a JSON object with a comma before each. */
	uint32_t details_size;
	char details[LONGEST_DETAILS];
};

/* Both return 0 if the general parser must read the line, of which no byte is unprintable. */
int parse_header(struct span line, struct header *header);
int parse_packet(struct span message, struct packet *packet);

#endif
