/* Who sends what in the network namespaces that are watched.
 *
 * Two objects are made of this file. The plain one uses what the kernel promises to keep: programs
 * of a cgroup (connect, sendmsg, release of a socket) and of TCP (sock_ops), and helpers. It tells of
 * calls, whose packets may be refused. The other one (WITH_TYPES) is for kernels that describe their
 * types (BTF): it reads as well what the caller is, while it is there to be read; and where packets
 * are refused it tells of each of those, and of nothing else.
 *
 * Nothing here refuses or changes a call: every program returns what lets it go on. Whatever does
 * not fit is counted in `lost`.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifdef WITH_TYPES
#include <bpf/bpf_core_read.h>
#include "kernel.h"
#endif

#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17
#define IPPROTO_TCP 6
#define SOCK_STREAM 1
#define PF_KTHREAD 0x00200000

/* The helpers that read memory are for programs that say so. */
char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* One image of a process: the same id after an exec is another one. Zero where it can't be read. */
struct image {
	__u32 tgid;
	__u32 reserved;
	__u64 started_ns; /* CLOCK_BOOTTIME */
	__u64 execs;
};

struct caller {
	struct image image;
	__u32 tid;
	__u32 uid;
	__u32 gid;
	__u32 reserved;
	char comm[16];
};

enum kind { CALL = 1, CLOSED = 2, PROCESS = 3 };

/* What is told of: no packet yet, but a socket of a datagram protocol that is connected; one of many,
 * of which the next ones are not told; what a connection of TCP begins with; a packet that can't be
 * read here, or one of many different ones that are not told: it may be any. */
enum { CONNECT = 1, MORE = 2, SYN = 4, ANY = 8 };

/* A call, or a packet that was refused: then its caller is nobody (0) where that is not known.
 * An address of IPv4 is in the first four bytes. Ports are numbers, 0 where they are not known. */
struct call {
	__u8 kind;
	__u8 family;
	__u8 protocol;
	__u8 flags;
	__u16 source_port;
	__u16 destination_port;
	__u64 time_ns; /* CLOCK_BOOTTIME */
	__u64 socket;
	__u64 netns;
	struct caller caller;
	__u32 owner; /* the user that the socket is of, or who calls */
	__u8 source[16];
	__u8 destination[16];
	__u8 reserved[4];
};

struct closed {
	__u8 kind;
	__u8 reserved[7];
	__u64 time_ns;
	__u64 socket;
};

/* What is told of a namespace. */
enum { REFUSALS = 1, CALLS = 2 };

/* The namespaces that are watched, by their cookies. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u8);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 19);
} calls SEC(".maps");

/* What was not told: calls, processes. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

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

static __always_inline void lose(__u32 what)
{
	__u64 *number = bpf_map_lookup_elem(&lost, &what);

	if (number)
		__sync_fetch_and_add(number, 1);
}

/* What is told of a namespace; nothing (0) of one that is not watched. */
static __always_inline __u8 what_of(__u64 netns)
{
	__u8 *what = bpf_map_lookup_elem(&watched, &netns);

	return what ? *what : 0;
}

/* So long nothing more is told of what was told often enough. */
#define AGAIN 500000000ULL
/* The same call again and again is told so often in that time. */
#define TIMES 8
/* And so many of one process: whoever floods is not to drown the others. */
#define MOST 2000

struct budget {
	__u64 since_ns;
	__u64 calls;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 12);
	__type(key, __u32);
	__type(value, struct budget);
} budgets SEC(".maps");

/* Who sends where by which socket; since when, and how often that was told. */
struct repeated {
	__u64 socket;
	__u32 tgid;
	__u16 destination_port;
	__u16 source_port;
	__u8 destination[16];
	__u8 protocol;
	__u8 flags;
	__u8 reserved[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 14);
	__type(key, struct repeated);
	__type(value, struct budget);
} repeats SEC(".maps");

/* Whether one more of a process is not to be told. The last one that is may be any of those. */
static __always_inline int is_too_many(struct call *call)
{
	__u32 tgid = call->caller.image.tgid;
	struct budget *budget = bpf_map_lookup_elem(&budgets, &tgid);
	struct budget fresh = { .since_ns = call->time_ns, .calls = 1 };

	if (!budget || call->time_ns - budget->since_ns > AGAIN) {
		bpf_map_update_elem(&budgets, &tgid, &fresh, BPF_ANY);
		return 0;
	}
	budget->calls += 1;
	if (budget->calls == MOST) {
		/* So long as it is silent from now on. */
		budget->since_ns = call->time_ns;
		call->flags |= MORE | ANY;
	}
	return budget->calls > MOST;
}

static __always_inline int is_repeated(struct call *call)
{
	struct repeated key = {
		.socket = call->socket,
		.tgid = call->caller.image.tgid,
		.destination_port = call->destination_port,
		.source_port = call->source_port,
		.protocol = call->protocol,
		.flags = call->flags,
	};
	struct budget fresh = { .since_ns = call->time_ns, .calls = 1 }, *known;

	__builtin_memcpy(key.destination, call->destination, sizeof(key.destination));
	known = bpf_map_lookup_elem(&repeats, &key);
	if (!known || call->time_ns - known->since_ns > AGAIN) {
		bpf_map_update_elem(&repeats, &key, &fresh, BPF_ANY);
		return 0;
	}
	known->calls += 1;
	if (known->calls == TIMES) {
		/* So long as it is silent from now on. */
		known->since_ns = call->time_ns;
		call->flags |= MORE;
	}
	return known->calls > TIMES;
}

/* Whoever reads is woken when there is much to read: what it needs it fetches itself. */
static __always_inline __u64 waking(void *ring, __u64 enough)
{
	return bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) > enough ? BPF_RB_FORCE_WAKEUP
								    : BPF_RB_NO_WAKEUP;
}

static __always_inline void tell(const void *event, __u64 size)
{
	if (bpf_ringbuf_output(&calls, (void *)event, size, waking(&calls, 1 << 17)))
		lose(0);
}

#ifdef WITH_TYPES
#include "process.h"
#endif

/* Who is calling; nobody (0) where no process is. */
static __always_inline int who(struct caller *caller)
{
#ifdef WITH_TYPES
	struct task_struct *task = (void *)bpf_get_current_task();

	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		return 0;
	caller->image = image_of(task);
	caller->tid = BPF_CORE_READ(task, pid);
	caller->uid = BPF_CORE_READ(task, real_cred, uid.val);
	caller->gid = BPF_CORE_READ(task, real_cred, gid.val);
	BPF_CORE_READ_STR_INTO(&caller->comm, task, comm);
	introduce(task, caller->image);
#else
	__u64 pid = bpf_get_current_pid_tgid(), uid = bpf_get_current_uid_gid();

	caller->image.tgid = pid >> 32;
	caller->tid = (__u32)pid;
	caller->uid = (__u32)uid;
	caller->gid = uid >> 32;
	bpf_get_current_comm(caller->comm, sizeof(caller->comm));
#endif
	return caller->image.tgid != 0;
}

static __always_inline void tell_call(struct call *call)
{
	if (!is_too_many(call))
		tell(call, sizeof(*call));
}

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
	if (who(&call.caller) && !is_repeated(&call)) {
		call.owner = owner();
		remember(call.socket);
		tell_call(&call);
	}
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
	if (who(&call.caller) && !is_repeated(&call)) {
		call.owner = owner();
		remember(call.socket);
		tell_call(&call);
	}
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
	remember(call.socket);
	tell_call(&call);
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

#ifdef WITH_TYPES
#include "refused.h"
#endif
