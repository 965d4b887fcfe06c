/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/* Calls, for namespaces whose packets are allowed, or whose refused packets can't be observed. Cgroup
 * programs run at connect(2) and sendto(2); TCP calls a program before its first packet. */
#pragma once

/* Processes that connect a TCP socket, until its packet is made; and the sockets to report as closed. */
struct pending {
	struct caller caller;
	__u64 task;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 14);
	__type(key, __u64);
	__type(value, struct pending);
} sockets SEC(".maps");

/* Return the owner of a socket that the caller would make now. */
static __always_inline __u32 owner(void)
{
#ifdef WITH_TYPES
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, cred, fsuid.val);
#else
	return (__u32)bpf_get_current_uid_gid();
#endif
}

static __always_inline void track_close(__u64 socket)
{
	struct pending no_caller = {};

	/* An existing entry stays. */
	bpf_map_update_elem(&sockets, &socket, &no_caller, BPF_NOEXIST);
}

/* connect(2) of a stream socket: its SYN follows, with the port that the socket gets. The caller is read
 * at the SYN; without types it can only be read here. */
static __always_inline int connecting(struct bpf_sock_addr *ctx)
{
#ifndef WITH_TYPES
	struct pending pending = { .task = bpf_get_current_task() };
	__u64 socket = bpf_get_socket_cookie(ctx);

	if (read_caller(&pending.caller) && bpf_map_update_elem(&sockets, &socket, &pending, BPF_ANY))
		count_dropped(0);
#endif
	return 1;
}

static __always_inline void start(struct call *call, struct bpf_sock_addr *ctx, __u64 netns)
{
	call->kind = CALL;
	call->protocol = ctx->protocol;
	call->source_port = ctx->sk->src_port;
	call->destination_port = bpf_ntohs(ctx->user_port);
	call->time_ns = bpf_ktime_get_boot_ns();
	call->socket = bpf_get_socket_cookie(ctx);
	call->netns = netns;
}

static __always_inline int call4(struct bpf_sock_addr *ctx, int flags)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct call call = { .family = AF_INET, .flags = flags };

	if (mode_of(netns) != CALLS)
		return 1;
	if (ctx->type == SOCK_STREAM)
		return connecting(ctx);
	start(&call, ctx, netns);
	*(__u32 *)call.destination = ctx->user_ip4;
	call.owner = owner();
	if (read_caller(&call.caller) && emit_call(&call, call.socket))
		track_close(call.socket);
	return 1;
}

static __always_inline int call6(struct bpf_sock_addr *ctx, int flags)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct call call = { .family = AF_INET6, .flags = flags };

	if (mode_of(netns) != CALLS)
		return 1;
	if (ctx->type == SOCK_STREAM)
		return connecting(ctx);
	start(&call, ctx, netns);
	((__u32 *)call.destination)[0] = ctx->user_ip6[0];
	((__u32 *)call.destination)[1] = ctx->user_ip6[1];
	((__u32 *)call.destination)[2] = ctx->user_ip6[2];
	((__u32 *)call.destination)[3] = ctx->user_ip6[3];
	call.owner = owner();
	if (read_caller(&call.caller) && emit_call(&call, call.socket))
		track_close(call.socket);
	return 1;
}

SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx) { return call4(ctx, CONNECT); }
SEC("cgroup/connect6") int connect6(struct bpf_sock_addr *ctx) { return call6(ctx, CONNECT); }
SEC("cgroup/sendmsg4") int sendmsg4(struct bpf_sock_addr *ctx) { return call4(ctx, 0); }
SEC("cgroup/sendmsg6") int sendmsg6(struct bpf_sock_addr *ctx) { return call6(ctx, 0); }

/* Read the process that makes TCP send its first packet; return 0 if it is unknown. It may not be the one
 * that connected the socket, if the socket sends later (fast open). */
static __always_inline int connector(struct caller *caller, __u64 socket)
{
#ifdef WITH_TYPES
	return read_caller(caller);
#else
	struct pending *pending = bpf_map_lookup_elem(&sockets, &socket);

	if (!pending || pending->task != bpf_get_current_task())
		return 0;
	*caller = pending->caller;
	return 1;
#endif
}

/* TCP is about to send its first packet, and already has its port. */
SEC("sockops") int established(struct bpf_sock_ops *ctx)
{
	struct call call = { .kind = CALL, .protocol = IPPROTO_TCP, .flags = SYN };

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB)
		return 1;
	call.netns = bpf_get_netns_cookie(ctx);
	if (mode_of(call.netns) != CALLS)
		return 1;
	call.time_ns = bpf_ktime_get_boot_ns();
	call.socket = bpf_get_socket_cookie(ctx);
	call.family = ctx->family;
	call.source_port = ctx->local_port;
	call.destination_port = bpf_ntohl(ctx->remote_port);
	if (ctx->family == AF_INET6) {
		((__u32 *)call.source)[0] = ctx->local_ip6[0];
		((__u32 *)call.source)[1] = ctx->local_ip6[1];
		((__u32 *)call.source)[2] = ctx->local_ip6[2];
		((__u32 *)call.source)[3] = ctx->local_ip6[3];
		((__u32 *)call.destination)[0] = ctx->remote_ip6[0];
		((__u32 *)call.destination)[1] = ctx->remote_ip6[1];
		((__u32 *)call.destination)[2] = ctx->remote_ip6[2];
		((__u32 *)call.destination)[3] = ctx->remote_ip6[3];
	} else {
		*(__u32 *)call.source = ctx->local_ip4;
		*(__u32 *)call.destination = ctx->remote_ip4;
	}
	if (!connector(&call.caller, call.socket)) {
		count_dropped(0);
		return 1;
	}
	call.owner = owner();
	if (emit_call(&call, 0))
		track_close(call.socket);
	return 1;
}

/* The last process has closed the socket: later packets from its port are of another socket. */
SEC("cgroup/sock_release") int released(struct bpf_sock *ctx)
{
	struct closed closed = { .kind = CLOSED };

	if (mode_of(bpf_get_netns_cookie(ctx)) != CALLS)
		return 1;
	closed.socket = bpf_get_socket_cookie(ctx);
	if (bpf_map_delete_elem(&sockets, &closed.socket))
		return 1;
	closed.time_ns = bpf_ktime_get_boot_ns();
	emit(&closed, sizeof(closed));
	return 1;
}
