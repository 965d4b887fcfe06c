/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/* Details of a process: reported at its exec, at its fork, and at its first call, while they can be
 * read. */
#pragma once

/* `text` has, one after the other: the names of the path to the program, from the file up; the same of the
 * working directory, and of the cgroup; then the arguments. */
#define TEXT 2048
#define NAME 256 /* the longest name of a file, with its NUL byte */
#define NAMES 24
#define SECTION 1024
#define GENERATIONS 16
#define ARGUMENTS 1024

struct process {
	__u8 kind;
	__u8 is_deleted;
	__u8 is_child; /* the parent has forked it; else the parent may have adopted it */
	__u8 reserved;
	__u32 namespace_pid;
	struct image image;
	struct image parent;
	__u32 uid;
	__u32 gid;
	__u64 inode;
	char comm[16];
	__u16 path;
	__u16 directory;
	__u16 cgroup;
	__u16 arguments; /* these four are numbers of bytes */
	char text[TEXT + ARGUMENTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 19);
} processes SEC(".maps");

/* The reported image of a process, by its id. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 14);
	__type(key, __u32);
	__type(value, struct image);
} described SEC(".maps");

/* The process that forked it: its parent may be another process by now. */
struct descent {
	__u64 started_ns;
	struct image parent;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 14);
	__type(key, __u32);
	__type(value, struct descent);
} descents SEC(".maps");

/* A program may be interrupted, and another one run on the same CPU meanwhile. */
#define DRAFTS 4
struct draft {
	__u64 is_taken;
	/* The used bytes of the text; with `most` of them or more, a loop adds no name. They are not on the
	 * stack of a loop: the verifier would tell apart all their values. */
	__u32 used;
	__u32 most;
	struct process process;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DRAFTS);
	__type(key, __u32);
	__type(value, struct draft);
} drafts SEC(".maps");

static __always_inline struct image image_of(struct task_struct *task)
{
	struct image image = {
		.tgid = BPF_CORE_READ(task, tgid),
		.started_ns = BPF_CORE_READ(task, group_leader, start_boottime),
		.execs = BPF_CORE_READ(task, self_exec_id),
	};

	return image;
}

static __always_inline int is_same(const struct image *one, const struct image *other)
{
	return one->tgid == other->tgid && one->started_ns == other->started_ns &&
	       one->execs == other->execs;
}

/* Add a text with its NUL byte, if there is room. */
static __always_inline void add(struct draft *draft, const void *text)
{
	__u32 used = draft->used;
	long size;

	if (used >= TEXT)
		return;
	size = bpf_probe_read_kernel_str(draft->process.text + (used & (TEXT - 1)), NAME, text);
	if (size > 0)
		draft->used = used + size;
}

/* State of a loop that adds names. The loops are bpf_loop()'s (Linux 5.17): so the kernel verifies one step,
 * and not each of them. */
struct naming {
	struct draft *draft;
	void *at; /* the file or the cgroup of the next name */
	struct mount *mount;
};

/* Add the name of a file, and go on with its folder; return 1 after the last name. */
static long add_file(__u32 step, struct naming *naming)
{
	struct dentry *dentry = naming->at, *parent;
	struct mount *mount = naming->mount;

	if (!dentry || naming->draft->used >= naming->draft->most)
		return 1;
	parent = BPF_CORE_READ(dentry, d_parent);
	if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
		struct mount *above = BPF_CORE_READ(mount, mnt_parent);

		if (above != mount) {
			naming->at = BPF_CORE_READ(mount, mnt_mountpoint);
			naming->mount = above;
			return 0;
		}
		parent = dentry;
	}
	add(naming->draft, BPF_CORE_READ(dentry, d_name.name));
	naming->at = parent;
	return parent == dentry;
}

/* Add the names of the path to a file, from it up to the root of its mount namespace. `address` is that of
 * the path. Not static: so the kernel verifies it once, and not again at each call. */
__noinline int add_path(struct draft *draft, __u64 address)
{
	struct path *at = (void *)address;
	struct vfsmount *there = BPF_CORE_READ(at, mnt);
	struct naming naming = {
		.draft = draft,
		.at = BPF_CORE_READ(at, dentry),
		.mount = (void *)there - bpf_core_field_offset(struct mount, mnt),
	};

	if (!draft)
		return 0;
	draft->most = draft->used + SECTION;
	bpf_loop(NAMES, add_file, &naming, 0);
	return 0;
}

/* Add the name of a cgroup, and go on with the one above; return 1 after the last name. */
static long add_group(__u32 step, struct naming *naming)
{
	struct kernfs_node *node = naming->at;
	struct kernfs_node___before *before = naming->at;

	if (!node || naming->draft->used >= naming->draft->most)
		return 1;
	add(naming->draft, BPF_CORE_READ(node, name));
	if (bpf_core_field_exists(before->parent))
		naming->at = BPF_CORE_READ(before, parent);
	else
		naming->at = BPF_CORE_READ(node, __parent);
	return 0;
}

/* Add the names of the cgroup of the task at `address`. Not static, as above. */
__noinline int add_cgroup(struct draft *draft, __u64 address)
{
	struct task_struct *task = (void *)address;
	struct naming naming = {
		.draft = draft,
		.at = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn),
	};

	if (!draft)
		return 0;
	draft->most = draft->used + SECTION;
	bpf_loop(NAMES, add_group, &naming, 0);
	return 0;
}

static __always_inline void add_arguments(struct draft *draft, struct mm_struct *mm)
{
	unsigned long begin = BPF_CORE_READ(mm, arg_start), end = BPF_CORE_READ(mm, arg_end);
	__u64 size = end - begin;
	__u32 used = draft->used;

	if (end <= begin || used >= TEXT)
		return;
	if (size > ARGUMENTS)
		size = ARGUMENTS;
	if (!bpf_probe_read_user(draft->process.text + (used & (TEXT - 1)), size, (void *)begin))
		draft->used = used + size;
}

static __always_inline void read_parent(struct task_struct *task, struct process *process)
{
	__u32 tgid = BPF_CORE_READ(task, tgid);
	struct descent *descent = bpf_map_lookup_elem(&descents, &tgid);
	struct task_struct *now;

	process->is_child =
		descent && descent->started_ns == BPF_CORE_READ(task, group_leader, start_boottime);
	if (process->is_child) {
		process->parent = descent->parent;
		return;
	}
	now = BPF_CORE_READ(task, group_leader, real_parent);
	process->parent = image_of(now);
}

/* Take a draft of this CPU; return its number, or DRAFTS if there is none. Not static, as above. */
__noinline __u32 take_draft(void)
{
	for (__u32 slot = 0; slot < DRAFTS; slot++) {
		__u32 number = slot;
		struct draft *draft = bpf_map_lookup_elem(&drafts, &number);

		if (draft && __sync_val_compare_and_swap(&draft->is_taken, 0, 1) == 0)
			return slot;
	}
	return DRAFTS;
}

/* Report the details of a process; return 1 if there was room. Not static, as above. */
__noinline int describe(__u64 address)
{
	struct task_struct *task = (void *)address;
	struct process *process;
	struct draft *draft;
	struct mm_struct *mm;
	struct pid *pid;
	struct file *file;
	struct dentry *dentry;
	__u32 level, used, slot = take_draft();
	long error;

	draft = bpf_map_lookup_elem(&drafts, &slot);
	if (!draft) {
		count_dropped(1);
		return 0;
	}
	process = &draft->process;
	process->kind = PROCESS;
	process->image = image_of(task);
	read_parent(task, process);
	process->uid = BPF_CORE_READ(task, real_cred, uid.val);
	process->gid = BPF_CORE_READ(task, real_cred, gid.val);
	BPF_CORE_READ_STR_INTO(&process->comm, task, group_leader, comm);
	pid = BPF_CORE_READ(task, group_leader, thread_pid);
	level = BPF_CORE_READ(pid, level);
	bpf_probe_read_kernel(&process->namespace_pid, sizeof(process->namespace_pid),
			      (void *)pid + bpf_core_field_offset(struct pid, numbers) +
				      level * bpf_core_type_size(struct upid));

	mm = BPF_CORE_READ(task, mm);
	file = mm ? BPF_CORE_READ(mm, exe_file) : NULL;
	process->is_deleted = 0;
	process->inode = 0;
	draft->used = 0;
	if (file) {
		dentry = BPF_CORE_READ(file, f_path.dentry);
		process->inode = BPF_CORE_READ(dentry, d_inode, i_ino);
		/* The file was removed under this name, as d_path() detects it. */
		process->is_deleted = BPF_CORE_READ(dentry, d_hash.pprev) == NULL;
		add_path(draft, (__u64)file + bpf_core_field_offset(struct file, f_path));
	}
	process->path = draft->used;
	add_path(draft,
		 (__u64)BPF_CORE_READ(task, fs) + bpf_core_field_offset(struct fs_struct, pwd));
	process->directory = draft->used - process->path;
	add_cgroup(draft, address);
	used = draft->used;
	process->cgroup = used - process->path - process->directory;
	/* Only the memory of the current process can be read. */
	if (mm && address == bpf_get_current_task())
		add_arguments(draft, mm);
	process->arguments = draft->used - used;
	used = draft->used;
	if (used > TEXT + ARGUMENTS)
		used = TEXT + ARGUMENTS;
	error = bpf_ringbuf_output(&processes, process,
				   __builtin_offsetof(struct process, text) + used,
				   wakeup_flag(&processes, 1 << 17));
	if (error)
		count_dropped(1);
	draft->is_taken = 0;
	return error == 0;
}

/* Report the details of a process and of its ancestors, unless they were reported before. If there is no room
 * for one of them, the process is reported again at its next call. Not static, as above. */
__noinline int describe_with_ancestors(__u64 address)
{
	struct task_struct *task = (void *)address;
	struct image image = image_of(task);
	__u32 caller = image.tgid;

	for (int generation = 0; generation < GENERATIONS && image.tgid; generation++) {
		struct image *known = bpf_map_lookup_elem(&described, &image.tgid);

		if (known && is_same(known, &image))
			return 0;
		if (!describe((__u64)task)) {
			bpf_map_delete_elem(&described, &caller);
			return 0;
		}
		bpf_map_update_elem(&described, &image.tgid, &image, BPF_ANY);
		task = BPF_CORE_READ(task, group_leader, real_parent);
		image = image_of(task);
	}
	return 0;
}

static __always_inline int is_watched(struct task_struct *task)
{
	return mode_of(BPF_CORE_READ(task, nsproxy, net_ns, net_cookie)) != 0;
}

/* include/trace/events/sched.h: TP_PROTO(struct task_struct *parent, struct task_struct *child) */
SEC("raw_tp/sched_process_fork") int forked(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *parent = (void *)ctx->args[0], *child = (void *)ctx->args[1];
	__u32 tgid = BPF_CORE_READ(child, tgid);
	struct descent descent;

	/* The child already has its own namespaces, if it got any: either may be watched. */
	if (tgid == BPF_CORE_READ(parent, tgid) || (!is_watched(parent) && !is_watched(child)))
		return 0;
	descent.parent = image_of(parent);
	descent.started_ns = BPF_CORE_READ(child, start_boottime);
	bpf_map_update_elem(&descents, &tgid, &descent, BPF_ANY);
	describe_with_ancestors((__u64)parent);
	return 0;
}

/* TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm) */
SEC("raw_tp/sched_process_exec") int executed(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)ctx->args[0];

	__u32 tgid = BPF_CORE_READ(task, tgid);

	/* A reported process that left the namespace is reported again: it runs another program. */
	if (is_watched(task) || bpf_map_lookup_elem(&described, &tgid))
		describe_with_ancestors((__u64)task);
	return 0;
}
