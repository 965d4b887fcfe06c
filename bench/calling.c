/* Timed calls, and processes that make calls, to measure the cost of attribution.
 *
 * calling time WORK BATCHES CALLS NAMESPACE: prints the nanoseconds of each batch of CALLS calls,
 * as JSON. Some works need another network namespace, which is at the other end.
 * calling swarm USER FIRST NUMBER RATE CALLS STAYS: NUMBER processes of a user, RATE per second
 * (0: as fast as possible; -1: one for each byte of standard input, after the end of the previous
 * one), each with a program that is started for it: by TCP, by UDP and by connected UDP in turn,
 * each to the next port. Prints the port and the pid of each.
 * calling try KIND PORT CALLS STAYS: one of them; 0 TCP, 1 UDP, 2 connected UDP. Further
 * calls are to the next ports. A process that stays ends with its parent. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1000, FIRST = 20000, PROXY = 3128, LOCAL = 7000, DROPPED = 9, KINDS = 3 };

extern char **environ;

static const char OUT[] = "203.0.113.7", GATEWAY[] = "10.200.0.1", LOOPBACK[] = "127.0.0.1";
static char data[1024];
static const char *beyond, *self;
static int mine[MOST], theirs[MOST], listener;

static struct sockaddr_in address_of(const char *address, int port)
{
	struct sockaddr_in found = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, address, &found.sin_addr);
	return found;
}

static int opened(int type)
{
	int made = socket(AF_INET, type | SOCK_CLOEXEC, 0);

	if (made < 0)
		err(1, "socket");
	return made;
}

/* For calls that must succeed, and for calls that must be refused. */
static void done(int result)
{
	if (result < 0)
		err(1, "a call that is allowed");
}

static void refused(int result)
{
	if (result >= 0)
		errx(1, "a call was not refused");
}

static int connected(int s, const char *address, int port)
{
	struct sockaddr_in to = address_of(address, port);

	return connect(s, (void *)&to, sizeof(to));
}

static int sent(int s, const char *address, int port)
{
	struct sockaddr_in to = address_of(address, port);

	return sendto(s, data, 100, 0, (void *)&to, sizeof(to));
}

static void bound(int s, const char *address, int port)
{
	struct sockaddr_in at = address_of(address, port);
	int yes = 1;

	done(setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)));
	done(bind(s, (void *)&at, sizeof(at)));
}

/* Leaves no pending connection behind. */
static void end(int s)
{
	struct linger at_once = { .l_onoff = 1 };

	setsockopt(s, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(s);
}

static void end_all(int calls)
{
	for (int i = 0; i < calls; i++)
		end(mine[i]);
}

static pid_t started(char *const arguments[])
{
	pid_t pid = fork();

	if (pid == 0) {
		if (arguments)
			execv(arguments[0], arguments);
		_exit(0);
	}
	done(pid);
	return pid;
}

static void ended(pid_t pid)
{
	done(waitpid(pid, NULL, 0));
}

static void open_streams(int calls)
{
	for (int i = 0; i < calls; i++)
		mine[i] = opened(SOCK_STREAM);
}

static void connect_out(int i) { refused(connected(mine[i], OUT, FIRST + i)); }

static void attempt(int i)
{
	int s = opened(SOCK_STREAM);

	refused(connected(s, OUT, FIRST + i));
	close(s);
}

static void open_datagram(void) { mine[0] = opened(SOCK_DGRAM); }
static void send_out(int i) { refused(sent(mine[0], OUT, FIRST + i)); }
static void send_again(int i) { (void)i; refused(sent(mine[0], OUT, FIRST)); }

static void connect_datagrams(int calls)
{
	for (int i = 0; i < calls; i++) {
		mine[i] = opened(SOCK_DGRAM);
		done(connected(mine[i], OUT, FIRST + i));
	}
}

static void connect_datagram(void) { connect_datagrams(1); }
static void send_connected(int i) { refused(send(mine[i], data, 100, 0)); }
static void send_connected_again(int i) { (void)i; refused(send(mine[0], data, 100, 0)); }

static void start_attempt(int i)
{
	char port[16];
	char *arguments[] = { (char *)self, "try", "0", port, "1", "0", NULL };

	snprintf(port, sizeof(port), "%d", FIRST + i);
	ended(started(arguments));
}

static void fork_and_exit(int i) { (void)i; ended(started(NULL)); }

static void run_and_exit(int i)
{
	char *arguments[] = { (char *)self, "nothing", NULL };

	(void)i;
	ended(started(arguments));
}

/* Starts the proxy in the other network namespace. */
static void listen_beyond(void)
{
	int here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	int there = open(beyond, O_RDONLY | O_CLOEXEC);

	done(here);
	done(there);
	done(setns(there, CLONE_NEWNET));
	listener = opened(SOCK_STREAM);
	bound(listener, GATEWAY, PROXY);
	done(listen(listener, MOST));
	done(setns(here, CLONE_NEWNET));
}

static void connect_proxy(int i) { done(connected(mine[i], GATEWAY, PROXY)); }

static void hang_up(int calls)
{
	end_all(calls);
	for (int i = 0; i < calls; i++)
		end(accept(listener, NULL, NULL));
}

static void open_proxied(void)
{
	listen_beyond();
	mine[0] = opened(SOCK_STREAM);
	done(connected(mine[0], GATEWAY, PROXY));
	theirs[0] = accept(listener, NULL, NULL);
	done(theirs[0]);
}

static void pass(int i)
{
	(void)i;
	done(send(mine[0], data, sizeof(data), 0));
	if (recv(theirs[0], data, sizeof(data), MSG_WAITALL) != sizeof(data))
		errx(1, "what was sent did not come");
}

static void open_local(void)
{
	theirs[0] = opened(SOCK_DGRAM);
	bound(theirs[0], LOOPBACK, LOCAL);
	mine[0] = opened(SOCK_DGRAM);
}

static void connect_local(void)
{
	open_local();
	done(connected(mine[0], LOOPBACK, LOCAL));
}

static void send_local(int i)
{
	(void)i;
	done(sent(mine[0], LOOPBACK, LOCAL));
	done(recv(theirs[0], data, sizeof(data), 0));
}

static void listen_local(void)
{
	listener = opened(SOCK_STREAM);
	bound(listener, LOOPBACK, LOCAL);
	done(listen(listener, MOST));
}

static void connect_and_close(int i)
{
	int s = opened(SOCK_STREAM);

	(void)i;
	done(connected(s, LOOPBACK, LOCAL));
	end(s);
	end(accept(listener, NULL, NULL));
}

static void send_dropped(int i) { (void)i; refused(sent(mine[0], LOOPBACK, DROPPED)); }

/* Functions that run once, before each batch, in it, and after it. */
static const struct work {
	const char *name;
	void (*once)(void);
	void (*before)(int calls);
	void (*call)(int number);
	void (*after)(int calls);
} WORKS[] = {
	{ "connect", NULL, open_streams, connect_out, end_all },
	{ "attempt", NULL, NULL, attempt, NULL },
	{ "sendto", open_datagram, NULL, send_out, NULL },
	{ "sendto-again", open_datagram, NULL, send_again, NULL },
	{ "send", NULL, connect_datagrams, send_connected, end_all },
	{ "send-again", connect_datagram, NULL, send_connected_again, NULL },
	{ "start", NULL, NULL, start_attempt, NULL },
	{ "fork", NULL, NULL, fork_and_exit, NULL },
	{ "exec", NULL, NULL, run_and_exit, NULL },
	{ "proxy", listen_beyond, open_streams, connect_proxy, hang_up },
	{ "stream", open_proxied, NULL, pass, NULL },
	{ "local", connect_local, NULL, pass, NULL },
	{ "local-sendto", open_local, NULL, send_local, NULL },
	{ "local-connect", listen_local, NULL, connect_and_close, NULL },
	{ "dropped", open_datagram, NULL, send_dropped, NULL },
};

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* The first batch is not printed: it runs with cold caches. */
static void batches(const struct work *work, int number, int calls)
{
	setpriority(PRIO_PROCESS, 0, -20);
	if (work->once)
		work->once();
	for (int batch = 0; batch <= number; batch++) {
		long long begun;

		if (work->before)
			work->before(calls);
		begun = now_ns();
		for (int i = 0; i < calls; i++)
			work->call(i);
		if (batch)
			printf("%s%lld", batch > 1 ? "," : "[", now_ns() - begun);
		if (work->after)
			work->after(calls);
	}
	puts("]");
}

static void try(int kind, int port, int calls, int stays)
{
	int s = opened(kind ? SOCK_DGRAM : SOCK_STREAM);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < calls; i++) {
		if (kind != 1)
			(void)!connected(s, OUT, port + i);
		if (kind == 1)
			sent(s, OUT, port + i);
		else if (kind == 2)
			send(s, data, 100, 0);
	}
	while (stays)
		pause();
	_exit(0);
}

static void swarm(int user, int first, int number, int rate, char *calls, char *stays)
{
	long long begun = now_ns();
	pid_t pid = 0;

	done(setgid(user));
	done(setuid(user));
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 0; i < number; i++) {
		char kind[16], port[16];
		char *arguments[] = { (char *)self, "try", kind, port, calls, stays, NULL };
		long long at = rate > 0 ? begun + i * 1000000000LL / rate : 0;
		struct timespec until = { at / 1000000000, at % 1000000000 };

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
		if (rate < 0) {
			if (getchar() == EOF)
				break;
			if (pid) {
				kill(pid, SIGKILL);
				ended(pid);
			}
		}
		snprintf(kind, sizeof(kind), "%d", i % KINDS);
		snprintf(port, sizeof(port), "%d", first + i);
		if ((errno = posix_spawn(&pid, self, NULL, NULL, arguments, environ)))
			err(1, "posix_spawn");
		printf("%d %d\n", first + i, pid);
		while (rate >= 0 && waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
	while (wait(NULL) > 0)
		;
}

int main(int argc, char **argv)
{
	self = argv[0];
	if (argc == 6 && !strcmp(argv[1], "time")) {
		int calls = atoi(argv[4]);

		beyond = argv[5];
		for (size_t i = 0; i < sizeof(WORKS) / sizeof(*WORKS); i++)
			if (!strcmp(argv[2], WORKS[i].name) && calls <= MOST) {
				batches(&WORKS[i], atoi(argv[3]), calls);
				return 0;
			}
	} else if (argc == 8 && !strcmp(argv[1], "swarm")) {
		swarm(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atoi(argv[5]), argv[6], argv[7]);
		return 0;
	} else if (argc == 6 && !strcmp(argv[1], "try")) {
		try(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
	} else if (argc == 2 && !strcmp(argv[1], "nothing")) {
		return 0;
	}
	return 2;
}
