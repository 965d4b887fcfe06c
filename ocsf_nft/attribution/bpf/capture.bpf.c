/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/* Reports about processes that send in the watched network namespaces.
 *
 * Two objects are built from this file. The plain one uses only stable interfaces of the kernel: cgroup
 * programs (connect, sendmsg, release of a socket), TCP programs (sock_ops), and helpers. It reports
 * calls, whose packets may be refused. The other one (WITH_TYPES) is for kernels that describe their
 * types (BTF). It also reads the details of the caller, while the caller exists. If packets are refused,
 * it reports each of these, and nothing else.
 *
 * No program here refuses or changes a call: each returns the value that lets it continue. Events without
 * room are counted in the map of dropped events.
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

/* The helpers that read memory need a GPL-compatible licence. */
char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* One image of a process: after an exec, the same id is another image. Zero if it can't be read. */
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

/* Kind of an event. CONNECT: no packet yet, but a connected datagram socket. MORE: one of many, and the
 * next ones are not reported. SYN: the first packet of a TCP connection. ANY: it may be any packet; it
 * can't be read here, or it is one of many different ones that are not reported. */
enum { CONNECT = 1, MORE = 2, SYN = 4, ANY = 8 };

/* A call, or a refused packet; for a packet with an unknown sender the caller is 0.
 * An IPv4 address is in the first four bytes. Ports are in host byte order, 0 if they are unknown. */
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
	__u32 owner; /* the user of the socket, or of the caller */
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

/* Report mode of a namespace. */
enum { REFUSALS = 1, CALLS = 2 };

/* The watched namespaces, by their cookies. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u8);
} watched SEC(".maps");

#define RING (1 << 19)

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING);
} calls SEC(".maps");

/* Numbers of dropped events: calls, processes. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} dropped SEC(".maps");

static __always_inline void count_dropped(__u32 kind)
{
	__u64 *number = bpf_map_lookup_elem(&dropped, &kind);

	if (number)
		__sync_fetch_and_add(number, 1);
}

/* Return the report mode of a namespace; 0 if it is not watched. */
static __always_inline __u8 mode_of(__u64 netns)
{
	__u8 *mode = bpf_map_lookup_elem(&watched, &netns);

	return mode ? *mode : 0;
}

/* Time without reports, after enough similar reports. */
#define PAUSE_NS 500000000ULL
/* Maximum number of reports of the same call in that time. */
#define MAX_REPEATS 8
/* Maximum number of reports of one process in that time, so that a flood displaces no other reports. After
 * each such pause a process that goes on has a quarter of it: its packets are hardly logged any more. The
 * smallest number is also that for refused packets while the ring is half full: the other half is for
 * processes with few reports. */
#define MAX_CALLS 2000
#define FEW_CALLS 32

struct repetitions {
	__u64 since_ns;
	__u64 calls;
};

/* Reports of a process since a time; EXHAUSTED in a pause. `most` is the limit after the pause. */
struct budget {
	__u64 since_ns;
	__u64 calls;
	__u64 most;
};

#define EXHAUSTED (1ULL << 32)

/* Key of a budget. Another program of a process, or a socket of another user, has a budget of its own: a
 * reader identifies unreported events by these. */
struct budget_key {
	__u64 netns;
	struct image image;
	__u32 owner;
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 12);
	__type(key, struct budget_key);
	__type(value, struct budget);
} budgets SEC(".maps");

/* Key of a repeated call; its value has the time of the first report, and the number of reports. */
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
	__type(value, struct repetitions);
} repeats SEC(".maps");

/* Return 1 if a process has no reports left for some time. */
static __always_inline int is_exhausted(const struct budget *budget, __u64 now_ns)
{
	return budget && budget->calls >= EXHAUSTED && now_ns - budget->since_ns <= PAUSE_NS;
}

/* Use one report of a process's budget. The last report gets the flag ANY, because the next packets are
 * not reported. */
static __always_inline void spend(struct call *call, const struct budget_key *key,
				  struct budget *budget)
{
	struct budget fresh = { .since_ns = call->time_ns, .calls = 1, .most = MAX_CALLS };
	__u64 passed_ns = budget ? call->time_ns - budget->since_ns : ~0ULL;
	__u64 most;

	if (budget && passed_ns <= PAUSE_NS) {
		most = budget->most;
		if (most > FEW_CALLS && mode_of(call->netns) == REFUSALS &&
		    bpf_ringbuf_query(&calls, BPF_RB_AVAIL_DATA) > RING / 2)
			most = FEW_CALLS;
		if (__sync_fetch_and_add(&budget->calls, 1) + 1 < most)
			return;
		/* The time without reports begins now. By key: another key may have got this element. */
		fresh.calls = EXHAUSTED;
		fresh.most = budget->most / 4 > FEW_CALLS ? budget->most / 4 : FEW_CALLS;
		call->flags |= MORE | ANY;
	} else if (budget && budget->calls >= EXHAUSTED && passed_ns <= 2 * PAUSE_NS) {
		fresh.most = budget->most;
	}
	bpf_map_update_elem(&budgets, key, &fresh, BPF_ANY);
}

/* Return 1 if the same call was reported often enough. */
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
	struct repetitions fresh = { .since_ns = call->time_ns, .calls = 1 }, *known;
	__u64 calls;

	__builtin_memcpy(key.destination, call->destination, sizeof(key.destination));
	known = bpf_map_lookup_elem(&repeats, &key);
	if (!known || call->time_ns - known->since_ns > PAUSE_NS) {
		bpf_map_update_elem(&repeats, &key, &fresh, BPF_ANY);
		return 0;
	}
	calls = __sync_fetch_and_add(&known->calls, 1) + 1;
	if (calls == MAX_REPEATS) {
		/* The time without reports begins now. */
		known->since_ns = call->time_ns;
		call->flags |= MORE;
	}
	return calls > MAX_REPEATS;
}

/* Wake the reader only if there is much to read: it reads by itself when it needs an event. */
static __always_inline __u64 wakeup_flag(void *ring, __u64 enough)
{
	return bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) > enough ? BPF_RB_FORCE_WAKEUP
								    : BPF_RB_NO_WAKEUP;
}

static __always_inline void emit(const void *event, __u64 size)
{
	if (bpf_ringbuf_output(&calls, (void *)event, size, wakeup_flag(&calls, 1 << 17)))
		count_dropped(0);
}

#ifdef WITH_TYPES
#include "process.h"
#endif

/* Read the current process; return 0 if there is none. */
static __always_inline int read_caller(struct caller *caller)
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
	describe_with_ancestors((__u64)task);
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

/* Return 1 if a call or a packet must be reported, 0 if it was reported often enough. `socket` is an id of
 * the socket, or 0 if no call is a repetition. Not static: so its callers need less stack. */
__noinline int take_report(struct call *call, __u64 socket)
{
	struct budget_key key = {};
	struct budget *budget;

	if (!call)
		return 0;
	key.netns = call->netns;
	key.image = call->caller.image;
	key.owner = call->owner;
	budget = bpf_map_lookup_elem(&budgets, &key);
	if (is_exhausted(budget, call->time_ns) || (socket && is_repeated(call, socket)))
		return 0;
	spend(call, &key, budget);
	return 1;
}

/* Report a call, unless it was reported often enough; return 1 if reported. */
static __always_inline int emit_call(struct call *call, __u64 socket)
{
	if (!take_report(call, socket))
		return 0;
	emit(call, sizeof(*call));
	return 1;
}

#include "called.h"

#ifdef WITH_TYPES
#include "refused.h"
#endif
