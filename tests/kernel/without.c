/* Makes the kernel one without NFLOG, or without any logging, for one nft run: preloaded, it
 * renames the `log` expressions in the outgoing netlink batch, so that the real kernel answers
 * with the real error. WITHOUT=nflog renames those with a group, WITHOUT=log all of them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

static void blind(char *data, size_t size)
{
	/* NFTA_EXPR_NAME (type 1) "log": length 8, type 1. */
	static const char name[8] = { 8, 0, 1, 0, 'l', 'o', 'g', 0 };
	/* NFTA_LOG_GROUP (type 1), 16 bits: length 6, type 1. */
	static const char group[4] = { 6, 0, 1, 0 };
	const char *without = getenv("WITHOUT");

	for (size_t i = 0; without && i + 64 < size; i++) {
		if (memcmp(data + i, name, sizeof(name)))
			continue;
		if (!strcmp(without, "log") || memmem(data + i + 8, 56, group, sizeof(group)))
			data[i + 6] = 'x';
	}
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");

	for (size_t i = 0; i < message->msg_iovlen; i++)
		blind(message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
	return real(fd, message, flags);
}
