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
	__u32 sum; /* Adler-32 of the packet's first bytes, 0 where they were not read */
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

/* Another program of a process, or a socket of another user, is another one: whoever asks what was not
 * told asks by these. */
struct spender {
	__u64 netns;
	struct image image;
	__u32 owner;
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 12);
	__type(key, struct spender);
	__type(value, struct budget);
} budgets SEC(".maps");

/* Who sends where by which socket; since when, and how often that was told. */
struct repeated {
	__u64 socket;
	__u64 netns;
	struct image image;
	__u32 tid;
	__u32 owner;
	__u16 destination_port;
	__u16 source_port;
	__u8 destination[16];
	__u8 family;
	__u8 protocol;
	__u8 flags;
	__u8 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 14);
	__type(key, struct repeated);
	__type(value, struct budget);
} repeats SEC(".maps");

/* Whether so many were told of a process that no more are, for a while. */
static __always_inline int is_spent(const struct budget *budget, __u64 now_ns)
{
	return budget && budget->calls >= MOST && now_ns - budget->since_ns <= AGAIN;
}

/* Take one off what may be told of a process. Where that was the last one it may be any of those that
 * come. */
static __always_inline void spend(struct call *call, const struct spender *spender,
				  struct budget *budget)
{
	struct budget fresh = { .since_ns = call->time_ns, .calls = 1 };

	if (!budget || call->time_ns - budget->since_ns > AGAIN) {
		bpf_map_update_elem(&budgets, spender, &fresh, BPF_ANY);
	} else if (__sync_fetch_and_add(&budget->calls, 1) + 1 >= MOST) {
		/* So long as it is silent from now on. */
		budget->since_ns = call->time_ns;
		call->flags |= MORE | ANY;
	}
}

/* Whether the same was told often enough. */
static __always_inline int is_repeated(struct call *call, __u64 socket)
{
	struct repeated key = {
		.socket = socket,
		.netns = call->netns,
		.image = call->caller.image,
		.tid = call->caller.tid,
		.owner = call->owner,
		.destination_port = call->destination_port,
		.source_port = call->source_port,
		.family = call->family,
		.protocol = call->protocol,
		.flags = call->flags,
	};
	struct budget fresh = { .since_ns = call->time_ns, .calls = 1 }, *known;
	__u64 calls;

	__builtin_memcpy(key.destination, call->destination, sizeof(key.destination));
	known = bpf_map_lookup_elem(&repeats, &key);
	if (!known || call->time_ns - known->since_ns > AGAIN) {
		bpf_map_update_elem(&repeats, &key, &fresh, BPF_ANY);
		return 0;
	}
	calls = __sync_fetch_and_add(&known->calls, 1) + 1;
	if (calls == TIMES) {
		/* As above. */
		known->since_ns = call->time_ns;
		call->flags |= MORE;
	}
	return calls > TIMES;
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

/* Tell of a call or a packet, unless enough is known of it; whether it was told. `socket` is what the
 * socket is known by here, or 0 where each is another one. */
static __always_inline int tell_call(struct call *call, __u64 socket)
{
	struct spender spender = {
		.netns = call->netns, .image = call->caller.image, .owner = call->owner
	};
	struct budget *budget = bpf_map_lookup_elem(&budgets, &spender);

	if (is_spent(budget, call->time_ns) || (socket && is_repeated(call, socket)))
		return 0;
	spend(call, &spender, budget);
	tell(call, sizeof(*call));
	return 1;
}

#include "called.h"

#ifdef WITH_TYPES
#include "refused.h"
#endif
