/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Allowed traffic of a sandbox: a server of TCP, and clients.
 *
 *   traffic serve CORE ADDRESS PORT
 *   traffic send CORE ADDRESS PORT CONNECTIONS BYTES MILLISECONDS
 *   traffic ask CORE ADDRESS PORT CONNECTIONS BYTES MILLISECONDS
 *   traffic receive CORE ADDRESS PORT
 *   traffic packets CORE ADDRESS PORT OWN-ADDRESS OWN-PORT BATCHES
 *
 * `send` writes BYTES at a time to each connection in turn, without Nagle's algorithm. `ask` writes BYTES
 * and waits until all of them have come back. Both print the number of writes and the nanoseconds until the
 * server has received everything. `packets` sends batches of 100 datagrams and prints the duration of each
 * batch in nanoseconds; `receive` has the socket for them, and never reads it. Each process stays on one
 * core.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LARGEST (1 << 20)
#define BATCH 100

static char buffer[LARGEST];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void stay_on(const char *core)
{
	cpu_set_t cores;

	CPU_ZERO(&cores);
	CPU_SET(atoi(core), &cores);
	if (sched_setaffinity(0, sizeof(cores), &cores) != 0)
		fail("sched_setaffinity");
}

static struct sockaddr_in parse(const char *address, const char *port)
{
	struct sockaddr_in found = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};

	if (inet_pton(AF_INET, address, &found.sin_addr) != 1)
		fail("inet_pton");
	return found;
}

static void write_all(int fd, const char *bytes, size_t length)
{
	while (length > 0) {
		ssize_t done = write(fd, bytes, length);

		if (done < 0)
			fail("write");
		bytes += done;
		length -= done;
	}
}

/* Return 0 at the end of the connection. */
static int read_all(int fd, size_t length)
{
	while (length > 0) {
		ssize_t done = read(fd, buffer, length);

		if (done < 0)
			fail("read");
		if (done == 0)
			return 0;
		length -= done;
	}
	return 1;
}

/* The first byte of a connection is its kind. Bytes of kind 'a' are returned; of kind 's' only the end is
 * confirmed, by one byte. The kind of a descriptor is in `kinds`; 0: not known yet. */
static void serve(const char *address, const char *port)
{
	static char kinds[1024];
	struct sockaddr_in own = parse(address, port);
	struct epoll_event event = {.events = EPOLLIN}, events[64];
	int one = 1, queue = epoll_create1(0), listening = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listening, (struct sockaddr *)&own, sizeof(own)) != 0 || listen(listening, 128) != 0)
		fail("listen");
	event.data.fd = listening;
	epoll_ctl(queue, EPOLL_CTL_ADD, listening, &event);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int number = epoll_wait(queue, events, 64, -1);

		for (int each = 0; each < number; each++) {
			int fd = events[each].data.fd;
			ssize_t length;

			if (fd == listening) {
				fd = accept(listening, NULL, NULL);
				if (fd < 0 || fd >= (int)sizeof(kinds))
					fail("accept");
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
				kinds[fd] = 0;
				event.data.fd = fd;
				epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event);
				continue;
			}
			if (kinds[fd] == 0) {
				if (read(fd, &kinds[fd], 1) != 1)
					close(fd);
				continue;
			}
			length = read(fd, buffer, kinds[fd] == 'a' ? 65536 : LARGEST);
			if (length <= 0) {
				if (kinds[fd] == 's')
					write_all(fd, "e", 1);
				close(fd);
			} else if (kinds[fd] == 'a') {
				write_all(fd, buffer, length);
			}
		}
	}
}

static void request(char kind, char **arguments)
{
	struct sockaddr_in server = parse(arguments[0], arguments[1]);
	int connections = atoi(arguments[2]), one = 1;
	size_t bytes = atol(arguments[3]);
	int64_t begin, end, writes = 0;
	int *fds = calloc(connections, sizeof(*fds));

	if (bytes < 1 || bytes > LARGEST || connections < 1)
		fail("usage");
	for (int each = 0; each < connections; each++) {
		fds[each] = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(fds[each], (struct sockaddr *)&server, sizeof(server)) != 0)
			fail("connect");
		setsockopt(fds[each], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		write_all(fds[each], &kind, 1);
	}
	begin = now_ns();
	end = begin + atoll(arguments[4]) * 1000000;
	while (now_ns() < end)
		for (int each = 0; each < connections; each++, writes++) {
			write_all(fds[each], buffer, bytes);
			if (kind == 'a' && !read_all(fds[each], bytes))
				fail("the server ended");
		}
	for (int each = 0; each < connections; each++)
		shutdown(fds[each], SHUT_WR);
	for (int each = 0; each < connections; each++)
		while (read_all(fds[each], 1))
			;
	printf("[%lld, %lld]\n", (long long)writes, (long long)(now_ns() - begin));
}

static int bound_socket(const char *address, const char *port)
{
	struct sockaddr_in own = parse(address, port);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (bind(fd, (struct sockaddr *)&own, sizeof(own)) != 0)
		fail("bind");
	return fd;
}

/* The kernel drops what has no room: so each packet takes the whole way, and nothing else. */
static void receive(const char *address, const char *port)
{
	int least = 0, fd = bound_socket(address, port);

	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &least, sizeof(least));
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}

static void packets(char **arguments)
{
	struct sockaddr_in to = parse(arguments[0], arguments[1]);
	int fd = bound_socket(arguments[2], arguments[3]), batches = atoi(arguments[4]);

	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0)
		fail("connect");
	for (int batch = 0; batch < batches; batch++) {
		int64_t begin = now_ns();

		for (int number = 0; number < BATCH; number++)
			if (send(fd, buffer, 64, 0) != 64)
				fail("send");
		printf("%s%lld", batch ? ", " : "[", (long long)(now_ns() - begin));
	}
	puts("]");
}

int main(int count, char **arguments)
{
	if (count == 5 && strcmp(arguments[1], "serve") == 0) {
		stay_on(arguments[2]);
		serve(arguments[3], arguments[4]);
	}
	if (count == 5 && strcmp(arguments[1], "receive") == 0) {
		stay_on(arguments[2]);
		receive(arguments[3], arguments[4]);
	}
	if (count != 8)
		fail("usage");
	stay_on(arguments[2]);
	if (strcmp(arguments[1], "packets") == 0)
		packets(arguments + 3);
	else
		request(strcmp(arguments[1], "ask") == 0 ? 'a' : 's', arguments + 3);
	return 0;
}
