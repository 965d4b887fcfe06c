/* What no cgroup program is asked about: packets of connected UDP sockets, of raw sockets and those
 * of ping, and frames of packet sockets. A fence that refuses one drops it while its sender waits. */
#pragma once

#define ESTABLISHED 1 /* include/net/tcp_states.h: a UDP socket that is connected */
#define NO_HEADER 0xffff /* include/linux/skbuff.h: skb_mac_header_was_set() */
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define IPPROTO_UDP 17
#define IPPROTO_UDPLITE 136

/* Whether a packet is dropped while who sends it is calling, so that the process that the CPU is at
 * is the one. That holds for a socket of a process, which keeps no packets back as TCP and SCTP do,
 * and by which the kernel sends none itself (tunnels: they keep their data with it). Of those, what
 * no frame was made of yet is on its way out of that very call; a frame may have waited for a
 * neighbour's address, and be sent on in an interrupt. One of a packet socket waits for nothing. */
static __always_inline int is_a_call(struct sk_buff *skb, struct sock *sk, __u16 family)
{
	__u16 type = BPF_CORE_READ(sk, sk_type);

	if (!BPF_CORE_READ(sk, sk_socket, file))
		return 0;
	if (family == AF_PACKET)
		return 1;
	return (type == SOCK_DGRAM || type == SOCK_RAW) && !BPF_CORE_READ(sk, sk_user_data) &&
	       BPF_CORE_READ(skb, mac_header) == NO_HEADER;
}

static __always_inline int read_header(struct call *call, struct sk_buff *skb)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	unsigned char *network = head + BPF_CORE_READ(skb, network_header);
	unsigned char *transport;
	__u8 version;
	__be16 ports[2];

	if (bpf_probe_read_kernel(&version, 1, network))
		return 0;
	if (version >> 4 == 4) {
		call->family = AF_INET;
		transport = network + (version & 15) * 4;
		bpf_probe_read_kernel(&call->protocol, 1, network + 9);
		bpf_probe_read_kernel(call->source, 4, network + 12);
		bpf_probe_read_kernel(call->destination, 4, network + 16);
	} else if (version >> 4 == 6) {
		call->family = AF_INET6;
		transport = network + 40;
		bpf_probe_read_kernel(&call->protocol, 1, network + 6);
		bpf_probe_read_kernel(call->source, 16, network + 8);
		bpf_probe_read_kernel(call->destination, 16, network + 24);
	} else {
		return 0;
	}
	if (call->protocol == IPPROTO_UDP || call->protocol == IPPROTO_UDPLITE) {
		bpf_probe_read_kernel(ports, sizeof(ports), transport);
		call->source_port = bpf_ntohs(ports[0]);
		call->destination_port = bpf_ntohs(ports[1]);
	}
	return 1;
}

/* include/trace/events/skb.h: TP_PROTO(struct sk_buff *skb, void *location,
 * enum skb_drop_reason reason, …); since Linux 5.17. */
SEC("raw_tp/kfree_skb") int refused(struct bpf_raw_tracepoint_args *ctx)
{
	struct sk_buff *skb = (void *)ctx->args[0];
	struct call call = { .kind = CALL, .flags = REFUSED };
	struct sock *sk;
	__u16 family;

	if (ctx->args[2] !=
	    bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_NETFILTER_DROP))
		return 0;
	sk = BPF_CORE_READ(skb, sk);
	if (!sk)
		return 0;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	call.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
	if (!is_watched(call.netns) || !is_a_call(skb, sk, family))
		return 0;
	call.time_ns = bpf_ktime_get_boot_ns();
	/* It has one where a program of ours has asked for it before. */
	call.socket = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (family == AF_PACKET) {
		call.family = AF_PACKET;
	} else {
		if (!read_header(&call, skb))
			return 0;
		/* Of one that is not connected sendmsg4 and sendmsg6 were asked. */
		if ((call.protocol == IPPROTO_UDP || call.protocol == IPPROTO_UDPLITE) &&
		    BPF_CORE_READ(sk, sk_protocol) == call.protocol &&
		    BPF_CORE_READ(sk, __sk_common.skc_state) != ESTABLISHED)
			return 0;
	}
	if (who(&call.caller) && !is_repeated(&call))
		tell_call(&call);
	return 0;
}
