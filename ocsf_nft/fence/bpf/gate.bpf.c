/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/* Last gate of a fence: at the egress of its uplinks, after every hook of nftables, and in place of all
 * classifiers of tc (tcx). Its second program is at the ingress of the host's ends, before the guard.
 *
 * The first one judges the frame as it leaves: what another chain has rewritten, what tc has redirected to the
 * uplink, and what an uplink sends in another network namespace. A process with CAP_NET_ADMIN in the
 * sandbox can't detach it. It sees no AF_XDP frame, and nothing that a queue of the link does later.
 *
 * Both stop a frame with a request for a checksum that is not that of its own transport header. A socket
 * chooses the offset of this checksum (AF_XDP, PACKET_VNET_HDR). A later device would write it there, for
 * example over the destination, after the guard has judged that.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The used fields of the kernel's structures: the loader finds their offsets by BTF. The helper for the
 * cookie of a namespace is that of the frame's socket, and ARP has none. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net {
	__u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
};

struct sk_buff {
	struct net_device *dev;
	__u8 ip_summed : 2;
	__u16 csum_start; /* from the begin of the buffer, as is mac_header */
	__u16 csum_offset; /* from csum_start */
	__u16 mac_header;
};

#pragma clang attribute pop

extern void *bpf_cast_to_kern_ctx(void *) __ksym;

#define CHECKSUM_PARTIAL 3 /* include/linux/skbuff.h */

#define MACS 4
#define ADDRESSES 32
#define NEIGHBOURS 32
#define DESTINATIONS 128
#define FIRST_DESTINATIONS 8
#define UNKNOWN4 1
#define UNKNOWN6 2

struct uplink {
	__u64 cookie; /* of the network namespace: another one is refused */
	__u32 ifindex;
	__u32 unused;
};

struct address {
	__u32 words[4]; /* IPv4 in the last one, as ::ffff:… */
};

struct destination {
	struct address network;
	struct address mask;
	__u16 first_port; /* host byte order */
	__u16 last_port;
	__u8 protocol;
	__u8 is_range; /* its addresses may be neighbours: see Surroundings.neighbours */
	__u8 unused[2];
};

struct policy {
	__u32 is_permissive;
	__u32 macs;
	__u32 addresses;
	__u32 neighbours;
	__u32 destinations;
	__u32 unknown; /* versions without a known address of the sandbox: see Surroundings.addresses */
	__u8 mac[MACS][8];
	struct address address[ADDRESSES];
	struct address neighbour[NEIGHBOURS];
	struct destination destination[DESTINATIONS];
};

struct stops {
	__u64 frames;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct uplink);
	__type(value, struct policy);
} policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct uplink);
	__type(value, struct stops);
} stopped SEC(".maps");

static __always_inline struct address mapped4(__be32 address)
{
	struct address found = {{0, 0, bpf_htonl(0xffff), address}};

	return found;
}

/* Comparisons without branches inside: each branch in a loop multiplies the verifier's work. */
static __always_inline int is_equal(const struct address *one, const struct address *other)
{
	__u32 difference = 0;

#pragma unroll
	for (int word = 0; word < 4; word++)
		difference |= one->words[word] ^ other->words[word];
	return difference == 0;
}

static __always_inline int is_in(const struct address *one, const struct destination *where)
{
	__u32 difference = 0;

#pragma unroll
	for (int word = 0; word < 4; word++)
		difference |= (one->words[word] & where->mask.words[word]) ^ where->network.words[word];
	return difference == 0;
}

static __always_inline int is_own(const struct policy *policy, const struct address *source,
				  __u32 unknown)
{
	__u32 number;

	if (policy->unknown & unknown)
		return 1;
	for (number = 0; number < ADDRESSES && number < policy->addresses; number++)
		if (is_equal(&policy->address[number], source))
			return 1;
	return 0;
}

static __always_inline int is_neighbour(const struct policy *policy, const struct address *target)
{
	__u32 number;

	bpf_for(number, 0, policy->neighbours)
		if (number < NEIGHBOURS && is_equal(&policy->neighbour[number], target))
			return 1;
	bpf_for(number, 0, policy->destinations)
		if (number < DESTINATIONS && policy->destination[number].is_range &&
		    is_in(target, &policy->destination[number]))
			return 1;
	return 0;
}

static __always_inline int is_match(const struct destination *where, const struct address *to,
				    __u8 protocol, __u16 port)
{
	return where->protocol == protocol && port >= where->first_port &&
	       port <= where->last_port && is_in(to, where);
}

/* The first destinations without an iterator, which takes 70 ns. All without one would take the verifier 20 ms
 * at each start, since it follows each turn of a usual loop. */
static __always_inline int is_allowed(const struct policy *policy, const struct address *to,
				      __u8 protocol, __u16 port)
{
	__u32 number;

	for (number = 0; number < FIRST_DESTINATIONS && number < policy->destinations; number++)
		if (is_match(&policy->destination[number], to, protocol, port))
			return 1;
	if (policy->destinations <= FIRST_DESTINATIONS)
		return 0;
	bpf_for(number, FIRST_DESTINATIONS, policy->destinations)
		if (number < DESTINATIONS &&
		    is_match(&policy->destination[number], to, protocol, port))
			return 1;
	return 0;
}

/* Begin of a frame: enough for Ethernet, and for IPv4 without options and its ports. Shorter frames are
 * refused: ARP has 42 bytes. */
struct head {
	struct ethhdr link;
	struct iphdr ip;
	__be16 ports[2];
} __attribute__((packed));

static __always_inline int asks_for_checksum(const struct sk_buff *frame)
{
	return BPF_CORE_READ_BITFIELD(frame, ip_summed) == CHECKSUM_PARTIAL;
}

/* Return true if no later device writes a requested checksum anywhere but in the checksum of the packet's own
 * transport header. One in the payload of UDP is allowed too: a tunnel's inner packet has it there.
 */
static __always_inline int has_own_checksum(struct __sk_buff *skb, const struct sk_buff *frame,
					    const struct head *head)
{
	const struct ipv6hdr *ip6 = (const void *)&head->ip;
	__u32 start, transport;
	__u8 protocol;

	if (head->link.h_proto == bpf_htons(ETH_P_IP)) {
		if (head->ip.version != 4 || head->ip.frag_off & bpf_htons(0x3fff))
			return 0;
		transport = ETH_HLEN + head->ip.ihl * 4;
		protocol = head->ip.protocol;
	} else if (head->link.h_proto == bpf_htons(ETH_P_IPV6)) {
		if (ip6->version != 6)
			return 0;
		transport = ETH_HLEN + sizeof(*ip6);
		protocol = ip6->nexthdr;
	} else {
		return 0;
	}
	/* The kernel has set mac_header to the begin of the frame. A start before it is a large number. */
	start = (__u32)frame->csum_start - frame->mac_header;
	if (protocol == IPPROTO_UDP && start >= transport + 8 && start < skb->len)
		return 1;
	if (start != transport)
		return 0;
	return (protocol == IPPROTO_TCP && frame->csum_offset == 16) ||
	       (protocol == IPPROTO_UDP && frame->csum_offset == 6);
}

/* Of a frame of ARP: Ethernet, and 28 bytes (RFC 826). */
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__be32 sender;
	__u8 target_mac[6];
	__be32 target;
} __attribute__((packed));

/* Of neighbour discovery (RFC 4861). */
struct discovery {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags;
	struct address target;
};

static __always_inline int is_own_mac(const struct policy *policy, const __u8 *mac)
{
	__u32 number;

	for (number = 0; number < MACS && number < policy->macs; number++) {
		const __u8 *own = policy->mac[number];

		__u8 difference = 0;

#pragma unroll
		for (int byte = 0; byte < ETH_ALEN; byte++)
			difference |= own[byte] ^ mac[byte];
		if (difference == 0)
			return 1;
	}
	return 0;
}

static __always_inline int is_link_local(const struct address *one)
{
	return one->words[0] == bpf_htonl(0xfe800000) && one->words[1] == 0;
}

/* ff02::1, and the groups of neighbour solicitations (RFC 4291). */
static __always_inline int is_neighbour_group(const struct address *one)
{
	if (one->words[0] != bpf_htonl(0xff020000) || one->words[1] != 0)
		return 0;
	if (one->words[2] == 0 && one->words[3] == bpf_htonl(1))
		return 1;
	return one->words[2] == bpf_htonl(1) &&
	       (one->words[3] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline int judge4(const struct policy *policy, const struct head *head)
{
	struct address source = mapped4(head->ip.saddr), to = mapped4(head->ip.daddr);

	if (head->ip.version != 4 || head->ip.ihl != 5 || head->ip.frag_off & bpf_htons(0x3fff))
		return 0;
	return is_own(policy, &source, UNKNOWN4) &&
	       is_allowed(policy, &to, head->ip.protocol, bpf_ntohs(head->ports[1]));
}

static __always_inline int judge_discovery(struct __sk_buff *skb, const struct policy *policy,
					   const struct ipv6hdr *ip)
{
	const struct address *source = (const void *)&ip->saddr, *to = (const void *)&ip->daddr;
	struct address none = {};
	struct discovery found;

	if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(*ip), &found, sizeof(found)))
		return 0;
	if (found.type != 135 && found.type != 136)
		return 0;
	if (found.code != 0 || ip->hop_limit != 255 || bpf_ntohs(ip->payload_len) > 40)
		return 0;
	if (skb->len != ETH_HLEN + sizeof(*ip) + bpf_ntohs(ip->payload_len))
		return 0;
	if (!is_own(policy, source, UNKNOWN6) && !is_link_local(source) &&
	    !is_equal(source, &none))
		return 0;
	if (!is_neighbour(policy, to) && !is_link_local(to) && !is_neighbour_group(to))
		return 0;
	return is_neighbour(policy, &found.target) || is_own(policy, &found.target, UNKNOWN6) ||
	       is_link_local(&found.target);
}

static __always_inline int judge6(struct __sk_buff *skb, const struct policy *policy)
{
	const struct address *source, *to;
	struct ipv6hdr ip;
	__be16 ports[2];

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 6)
		return 0;
	if (ip.nexthdr == IPPROTO_ICMPV6)
		return judge_discovery(skb, policy, &ip);
	source = (const void *)&ip.saddr;
	to = (const void *)&ip.daddr;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(ip), ports, sizeof(ports)))
		return 0;
	if (!is_own(policy, source, UNKNOWN6) && !(is_link_local(source) && is_link_local(to)))
		return 0;
	return is_allowed(policy, to, ip.nexthdr, bpf_ntohs(ports[1]));
}

static __always_inline int judge_arp(struct __sk_buff *skb, const struct policy *policy)
{
	struct address sender, target;
	struct arp arp;

	if (skb->len > 60 || bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return 0;
	if (arp.hardware != bpf_htons(1) || arp.protocol != bpf_htons(ETH_P_IP) ||
	    arp.hardware_length != ETH_ALEN || arp.protocol_length != 4)
		return 0;
	if (arp.operation != bpf_htons(1) && arp.operation != bpf_htons(2))
		return 0;
	if (!is_own_mac(policy, arp.sender_mac))
		return 0;
	sender = mapped4(arp.sender);
	target = mapped4(arp.target);
	if (arp.sender != 0 && !is_own(policy, &sender, UNKNOWN4))
		return 0;
	return is_neighbour(policy, &target) || is_own(policy, &target, UNKNOWN4);
}

static __always_inline int judge(struct __sk_buff *skb, const struct policy *policy,
				 const struct head *head)
{
	if (skb->vlan_present || !is_own_mac(policy, head->link.h_source))
		return 0;
	if (head->link.h_proto == bpf_htons(ETH_P_IP))
		return !(head->link.h_dest[0] & 1) && judge4(policy, head);
	if (head->link.h_proto == bpf_htons(ETH_P_IPV6))
		return judge6(skb, policy);
	if (head->link.h_proto == bpf_htons(ETH_P_ARP))
		return judge_arp(skb, policy);
	return 0;
}

static __always_inline struct uplink key_of(const struct sk_buff *frame)
{
	struct uplink key = {
		.cookie = frame->dev->nd_net.net->net_cookie,
		.ifindex = frame->dev->ifindex,
	};

	return key;
}

static __always_inline int stop(struct __sk_buff *skb, const struct uplink *key)
{
	struct stops *stops = bpf_map_lookup_elem(&stopped, key);

	if (stops != NULL) {
		__sync_fetch_and_add(&stops->frames, 1);
		__sync_fetch_and_add(&stops->bytes, skb->len);
	}
	return TCX_DROP;
}

SEC("tcx/egress")
int gate(struct __sk_buff *skb)
{
	struct sk_buff *frame = bpf_cast_to_kern_ctx(skb);
	struct uplink key = key_of(frame);
	struct policy *policy = bpf_map_lookup_elem(&policies, &key);
	struct head head;

	/* TCX_PASS, so that no classifier of tc runs after this program. */
	if (policy != NULL && policy->is_permissive)
		return TCX_PASS;
	if (policy == NULL || bpf_skb_load_bytes(skb, 0, &head, sizeof(head)))
		return stop(skb, &key);
	if (asks_for_checksum(frame) && !has_own_checksum(skb, frame, &head))
		return stop(skb, &key);
	return judge(skb, policy, &head) ? TCX_PASS : stop(skb, &key);
}

/* At the host's end of a guarded link. The guard judges the rest: nftables can't match the request. */
SEC("tcx/ingress")
int guarded_end(struct __sk_buff *skb)
{
	struct sk_buff *frame = bpf_cast_to_kern_ctx(skb);
	struct uplink key;
	struct head head;

	/* TCX_NEXT: the host may have programs of its own there. */
	if (!asks_for_checksum(frame))
		return TCX_NEXT;
	if (!bpf_skb_load_bytes(skb, 0, &head, sizeof(head)) && has_own_checksum(skb, frame, &head))
		return TCX_NEXT;
	key = key_of(frame);
	return stop(skb, &key);
}

char _license[] SEC("license") = "Dual BSD/GPL";
