/* Hides a feature of the kernel from one nft process: when preloaded, it renames the feature in the
 * outgoing netlink batch, so that the real kernel answers with its real error. WITHOUT=nflog renames
 * the `log` expressions with a group, WITHOUT=NAME all expressions or chain types with that name. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

static void blind(char *data, size_t size)
{
	/* NFTA_LOG_GROUP (type 1), 16 bits: length 6, type 1. */
	static const char group[4] = { 6, 0, 1, 0 };
	const char *without = getenv("WITHOUT");
	if (!without)
		return;
	int only_nflog = !strcmp(without, "nflog");
	const char *name = only_nflog ? "log" : without;
	size_t length = 4 + strlen(name) + 1;

	for (size_t i = 0; i + 64 < size; i++) {
		/* NFTA_EXPR_NAME is of type 1, NFTA_CHAIN_TYPE of type 7; the name ends with a NUL. */
		if (data[i] != (char)length || data[i + 1] || data[i + 3] ||
		    (data[i + 2] != 1 && data[i + 2] != 7) || strcmp(data + i + 4, name))
			continue;
		if (!only_nflog || memmem(data + i + 8, 56, group, sizeof(group)))
			data[i + 4] = 'x';
	}
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");

	for (size_t i = 0; i < message->msg_iovlen; i++)
		blind(message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
	return real(fd, message, flags);
}
