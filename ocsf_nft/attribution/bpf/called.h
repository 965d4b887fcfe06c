/* Calls, where their packets are let pass, or are not seen to be refused: programs of a cgroup are asked
 * about connect(2) and sendto(2), and TCP tells of its first packet. */
#pragma once

/* Who connects a TCP socket, until its packet is made; and the sockets whose end is to be told. */
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

/* Whose a socket is that the caller makes now. */
static __always_inline __u32 owner(void)
{
#ifdef WITH_TYPES
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, cred, fsuid.val);
#else
	return (__u32)bpf_get_current_uid_gid();
#endif
}

static __always_inline void remember(__u64 socket)
{
	struct pending nobody = {};

	/* Whoever is there already stays. */
	bpf_map_update_elem(&sockets, &socket, &nobody, BPF_NOEXIST);
}

/* connect(2) of what begins with a handshake: its packet follows, with the port that it gets. Who is
 * calling then is asked then; without types it can be asked here alone. */
static __always_inline int connecting(struct bpf_sock_addr *ctx)
{
#ifndef WITH_TYPES
	struct pending pending = { .task = bpf_get_current_task() };
	__u64 socket = bpf_get_socket_cookie(ctx);

	if (who(&pending.caller) && bpf_map_update_elem(&sockets, &socket, &pending, BPF_ANY))
		lose(0);
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

	if (what_of(netns) != CALLS)
		return 1;
	if (ctx->type == SOCK_STREAM)
		return connecting(ctx);
	start(&call, ctx, netns);
	*(__u32 *)call.destination = ctx->user_ip4;
	call.owner = owner();
	if (who(&call.caller) && tell_call(&call, call.socket))
		remember(call.socket);
	return 1;
}

static __always_inline int call6(struct bpf_sock_addr *ctx, int flags)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct call call = { .family = AF_INET6, .flags = flags };

	if (what_of(netns) != CALLS)
		return 1;
	if (ctx->type == SOCK_STREAM)
		return connecting(ctx);
	start(&call, ctx, netns);
	((__u32 *)call.destination)[0] = ctx->user_ip6[0];
	((__u32 *)call.destination)[1] = ctx->user_ip6[1];
	((__u32 *)call.destination)[2] = ctx->user_ip6[2];
	((__u32 *)call.destination)[3] = ctx->user_ip6[3];
	call.owner = owner();
	if (who(&call.caller) && tell_call(&call, call.socket))
		remember(call.socket);
	return 1;
}

SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx) { return call4(ctx, CONNECT); }
SEC("cgroup/connect6") int connect6(struct bpf_sock_addr *ctx) { return call6(ctx, CONNECT); }
SEC("cgroup/sendmsg4") int sendmsg4(struct bpf_sock_addr *ctx) { return call4(ctx, 0); }
SEC("cgroup/sendmsg6") int sendmsg6(struct bpf_sock_addr *ctx) { return call6(ctx, 0); }

/* Who makes TCP send what a connection begins with; nobody (0) where that is not known. Who connected
 * the socket is somebody else where it sends later (fast open). */
static __always_inline int connector(struct caller *caller, __u64 socket)
{
#ifdef WITH_TYPES
	return who(caller);
#else
	struct pending *pending = bpf_map_lookup_elem(&sockets, &socket);

	if (!pending || pending->task != bpf_get_current_task())
		return 0;
	*caller = pending->caller;
	return 1;
#endif
}

/* TCP is about to send its first packet, and has its port by now. */
SEC("sockops") int established(struct bpf_sock_ops *ctx)
{
	struct call call = { .kind = CALL, .protocol = IPPROTO_TCP, .flags = SYN };

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB)
		return 1;
	call.netns = bpf_get_netns_cookie(ctx);
	if (what_of(call.netns) != CALLS)
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
		lose(0);
		return 1;
	}
	call.owner = owner();
	if (tell_call(&call, 0))
		remember(call.socket);
	return 1;
}

/* Nobody has the socket any more: what comes from its port later is another one's. */
SEC("cgroup/sock_release") int released(struct bpf_sock *ctx)
{
	struct closed closed = { .kind = CLOSED };

	if (what_of(bpf_get_netns_cookie(ctx)) != CALLS)
		return 1;
	closed.socket = bpf_get_socket_cookie(ctx);
	if (bpf_map_delete_elem(&sockets, &closed.socket))
		return 1;
	closed.time_ns = bpf_ktime_get_boot_ns();
	tell(&closed, sizeof(closed));
	return 1;
}
