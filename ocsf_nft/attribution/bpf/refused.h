/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/* Packets that a fence has refused, one by one: the sender, and the target by the packet's own header, as
 * the fence logs it. */
#pragma once

#define TCP_NEW_SYN_RECV 12 /* include/net/tcp_states.h: not a full socket yet */
#define TCP_TIME_WAIT 6     /* no full socket any more */
#define NOT_SET 0xffff      /* include/linux/skbuff.h: skb_mac_header_was_set() */
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define AF_NETLINK 16
#define NETLINK_NETFILTER 12
#define IPPROTO_HOPOPTS 0
#define IPPROTO_UDP 17
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH 51
#define IPPROTO_DSTOPTS 60
#define IPPROTO_UDPLITE 136
#define EXTENSIONS 8
/* First bytes of a packet that are compared: NFLOG copies at least these (rules/accounting.nft: snaplen). */
#define COPIED 128
#define ADLER 65521 /* RFC 1950 */

/* Maximum number of descriptors of a process that are searched. */
#define SEARCHED 4096

/* The readable bytes of a packet: from its network header, `size` bytes. */
struct header {
	unsigned char *start;
	__u32 size;
	__u32 whole; /* length of the packet, with its data in other buffers */
};

/* Return 1 if `size` bytes at `at` are readable, 0 if the packet ends before, else -1. */
static __always_inline int has_bytes(struct header *header, __u32 at, __u32 size)
{
	if (at + size > header->whole)
		return 0;
	return at + size <= header->size && at + size <= COPIED ? 1 : -1;
}

/* Read the ports, if the packet has them; return 0 if they can't be read. */
static __always_inline int read_ports(struct call *call, struct header *header, __u32 at)
{
	__u32 size = call->protocol == IPPROTO_TCP ? 20 : 8;
	struct {
		__be16 source, destination;
		__be32 numbers[2];
		__u8 offset, flags;
	} ports;
	int is_there;

	if (call->protocol != IPPROTO_TCP && call->protocol != IPPROTO_UDP &&
	    call->protocol != IPPROTO_UDPLITE)
		return 1;
	is_there = has_bytes(header, at, size);
	if (is_there <= 0)
		return is_there == 0;
	bpf_probe_read_kernel(&ports, call->protocol == IPPROTO_TCP ? 14 : 4, header->start + at);
	call->source_port = bpf_ntohs(ports.source);
	call->destination_port = bpf_ntohs(ports.destination);
	if (call->protocol == IPPROTO_TCP && (ports.flags & 0x12) == 0x02)
		call->flags |= SYN;
	return 1;
}

static __always_inline int read_ipv4(struct call *call, struct header *header)
{
	struct {
		__u8 length, service;
		__be16 total, id, fragment;
		__u8 hops, protocol;
		__be16 sum;
		__u8 source[4], destination[4];
	} ip;

	if (has_bytes(header, 0, sizeof(ip)) != 1 ||
	    bpf_probe_read_kernel(&ip, sizeof(ip), header->start))
		return 0;
	call->family = AF_INET;
	call->protocol = ip.protocol;
	__builtin_memcpy(call->source, ip.source, 4);
	__builtin_memcpy(call->destination, ip.destination, 4);
	if (bpf_ntohs(ip.fragment) & 0x1fff)
		return 1;
	return read_ports(call, header, (ip.length & 15) * 4);
}

static __always_inline int is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING ||
	       protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_FRAGMENT ||
	       protocol == IPPROTO_AH;
}

/* A packet whose protocol its log record lacks (sources/packet.py: _extensions) is unreadable here, too. */
static __always_inline int read_ipv6(struct call *call, struct header *header)
{
	struct {
		__be32 flow;
		__be16 payload;
		__u8 next, hops, source[16], destination[16];
	} ip;
	__u8 next, extension[4];
	__u32 at = sizeof(ip);

	if (has_bytes(header, 0, sizeof(ip)) != 1 ||
	    bpf_probe_read_kernel(&ip, sizeof(ip), header->start))
		return 0;
	call->family = AF_INET6;
	__builtin_memcpy(call->source, ip.source, 16);
	__builtin_memcpy(call->destination, ip.destination, 16);
	next = ip.next;
	for (int number = 0; number < EXTENSIONS; number++) {
		if (!is_extension(next)) {
			call->protocol = next;
			return read_ports(call, header, at);
		}
		if (has_bytes(header, at, next == IPPROTO_AH ? 12 : 8) != 1 ||
		    bpf_probe_read_kernel(extension, sizeof(extension), header->start + at))
			return 0;
		if (next == IPPROTO_FRAGMENT) {
			/* The data of a later fragment is not a header. */
			if (extension[2] || extension[3] & 0xf8) {
				call->protocol = extension[0];
				return !is_extension(extension[0]);
			}
			at += 8;
		} else if (next == IPPROTO_AH) {
			at += (extension[1] + 2) * 4;
		} else {
			at += (extension[1] + 1) * 8;
		}
		next = extension[0];
	}
	return 0;
}

/* Read the target from the own header of the packet at `address`; an unreadable packet may be any packet.
 * Not static: so its caller needs less stack. */
__noinline int read_header(struct call *call, __u64 address)
{
	struct sk_buff *skb = (void *)address;
	unsigned char *data = BPF_CORE_READ(skb, data);
	struct header header = {
		.start = BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, network_header),
		.whole = BPF_CORE_READ(skb, len),
	};
	__u32 is_read = 0;

	if (!call)
		return 0;
	header.size = header.whole - BPF_CORE_READ(skb, data_len);
	if (header.start == data) {
		__u16 protocol = bpf_ntohs(BPF_CORE_READ(skb, protocol));

		if (protocol == ETH_P_IP)
			is_read = read_ipv4(call, &header);
		else if (protocol == ETH_P_IPV6)
			is_read = read_ipv6(call, &header);
	}
	if (!is_read)
		call->flags |= ANY;
	return is_read;
}

/* Return the checksum of the first bytes of the packet at `address`; 0 if they are not all readable. Not
 * static: so the kernel verifies the rest once, and not for each number of bytes. */
__noinline __u32 sum_of(__u64 address)
{
	struct sk_buff *skb = (void *)address;
	__u32 size = BPF_CORE_READ(skb, len), a = 1, b = 0;
	__u8 bytes[COPIED];

	if (size > COPIED)
		size = COPIED;
	if (size > BPF_CORE_READ(skb, len) - BPF_CORE_READ(skb, data_len) || size == 0 ||
	    bpf_probe_read_kernel(bytes, size, BPF_CORE_READ(skb, data)))
		return 0;
	for (__u32 at = 0; at < COPIED && at < size; at++) {
		a += bytes[at];
		b += a;
	}
	return (b % ADLER) << 16 | a;
}

/* Return 1 if the packet is refused as a frame, on its way out of a device. */
static __always_inline int is_frame(struct sk_buff *skb, __u16 family)
{
	__u16 link = BPF_CORE_READ(skb, mac_header);

	/* The kernel sets no header for a frame that bypasses the queue. */
	if (link == NOT_SET)
		return family == AF_PACKET;
	return BPF_CORE_READ(skb, head) + link == BPF_CORE_READ(skb, data);
}

/* Return 1 if a device on top of this one may send through it, and later. */
static __always_inline int is_below_another(struct net_device *dev)
{
	void *upper = (void *)dev + bpf_core_field_offset(struct net_device, adj_list.upper);

	return BPF_CORE_READ(dev, adj_list.upper.next) != upper;
}

/* Return 1 if the current process holds the socket in a call. A timer, or a release for another process,
 * holds the spinlock or does not own the socket (net/core/sock.c: release_sock()). */
static __always_inline int is_held(struct sock *sk)
{
	struct sock *typed = sk;

	if (!bpf_core_field_exists(typed->sk_lock.slock.rlock.raw_lock.val.counter))
		return 0;
	return BPF_CORE_READ(sk, sk_lock.owned) &&
	       !BPF_CORE_READ(sk, sk_lock.slock.rlock.raw_lock.val.counter);
}

/* Return 1 if the current process has sent the packet, in a call.
 *
 * That is so if the socket does not queue the packet. For TCP: the first packet, in connect(2). For
 * datagrams: if the kernel itself sends none through the socket (tunnels set its user data), and if the
 * packet has no frame header. A packet with one may have waited for a neighbour's address, and is then
 * sent in an interrupt. A packet of a packet socket is never delayed. */
static __always_inline int is_sent_now(struct call *call, struct sk_buff *skb, struct sock *sk,
				       __u16 family)
{
	__u16 type = BPF_CORE_READ(sk, sk_type);

	if (family == AF_PACKET)
		return call->family == AF_PACKET && !is_below_another(BPF_CORE_READ(skb, dev));
	if (BPF_CORE_READ(skb, mac_header) != NOT_SET)
		return 0;
	if (type == SOCK_STREAM)
		return call->flags & SYN && is_held(sk);
	return (type == SOCK_DGRAM || type == SOCK_RAW) && !BPF_CORE_READ(sk, sk_user_data);
}

/* Search for the file of a packet's socket, and for a socket to netfilter, among the open files. */
struct search {
	struct file *file;
	const void *operations; /* of each socket's file */
	struct file **open;
	int is_found;
	int may_queue;
};

static long compare_file(__u32 number, struct search *search)
{
	struct file *file = NULL;
	struct socket *socket;

	bpf_probe_read_kernel(&file, sizeof(file), search->open + number);
	search->is_found = file == search->file;
	if (search->is_found || !file || BPF_CORE_READ(file, f_op) != search->operations)
		return search->is_found;
	socket = BPF_CORE_READ(file, private_data);
	if (BPF_CORE_READ(socket, sk, __sk_common.skc_family) == AF_NETLINK &&
	    BPF_CORE_READ(socket, sk, sk_protocol) == NETLINK_NETFILTER)
		search->may_queue = 1;
	return 0;
}

/* Return 1 if the current process may only send on a packet of the socket with the file at `address`. That is
 * a program to which a rule queues packets (NFQUEUE), by its verdict: also while the sender is in a later call
 * that holds the socket. It has a socket to netfilter open, and not that one. A sender without its socket in
 * the table of files (io_uring, a close in another thread) is no such program. Not static, as above. */
__noinline int sends_on(__u64 address)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file *file = (void *)address;
	struct search search = { .file = file };
	__u32 size = BPF_CORE_READ(table, max_fds);

	search.operations = BPF_CORE_READ(file, f_op);
	search.open = BPF_CORE_READ(table, fd);
	bpf_loop(size < SEARCHED ? size : SEARCHED, compare_file, &search, 0);
	return !search.is_found && (search.may_queue || size > SEARCHED);
}

/* Return 1 if the sender of a datagram has no reports left, before anything else is read: a flood has a
 * hundred thousand packets a second. `packet` and `socket` are addresses. Not static, as above. */
__noinline int is_unreported(struct call *call, __u64 packet, __u64 socket)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct sk_buff *skb = (void *)packet;
	struct sock *sk = (void *)socket;
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	struct budget_key key = {};

	if (!call || family == AF_PACKET || BPF_CORE_READ(sk, sk_type) == SOCK_STREAM ||
	    !is_sent_now(call, skb, sk, family))
		return 0;
	key.netns = call->netns;
	key.image = image_of(task);
	key.owner = call->owner;
	return is_exhausted(bpf_map_lookup_elem(&budgets, &key), call->time_ns);
}

/* include/trace/events/skb.h: TP_PROTO(struct sk_buff *skb, void *location,
 * enum skb_drop_reason reason, …); since Linux 5.17. */
SEC("raw_tp/kfree_skb") int refused(struct bpf_raw_tracepoint_args *ctx)
{
	struct sk_buff *skb = (void *)ctx->args[0];
	struct call call = { .kind = CALL };
	struct file *file;
	struct sock *sk;
	__u16 family;
	__u8 state;

	if (ctx->args[2] !=
	    bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_NETFILTER_DROP))
		return 0;
	sk = BPF_CORE_READ(skb, sk);
	if (!sk)
		return 0;
	call.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
	/* The socket of an inbound packet is its receiver's. */
	if (mode_of(call.netns) != REFUSALS || BPF_CORE_READ(skb, skb_iif))
		return 0;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_NEW_SYN_RECV || state == TCP_TIME_WAIT)
		return 0;
	/* A record has a user only if a process has the socket. */
	file = BPF_CORE_READ(sk, sk_socket, file);
	if (!file)
		return 0;
	call.owner = BPF_CORE_READ(file, f_cred, fsuid.val);
	call.time_ns = bpf_ktime_get_boot_ns();
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (is_unreported(&call, (__u64)skb, (__u64)sk))
		return 0;
	if (is_frame(skb, family))
		call.family = AF_PACKET;
	else
		read_header(&call, (__u64)skb);
	if (is_sent_now(&call, skb, sk, family))
		read_caller(&call.caller);
	/* The first packet of a connection is not a repetition. */
	if (take_report(&call, call.flags & SYN ? 0 : (__u64)sk)) {
		/* Only now: with thousands of descriptors, the search takes half a millisecond. */
		if (sends_on((__u64)file))
			call.caller = (struct caller){};
		call.sum = sum_of((__u64)skb);
		emit(&call, sizeof(call));
	}
	return 0;
}
