/* Makes one attempt to connect, then exits at once.
 *
 * brief NUMBER FLAGS: the packet contains NUMBER, in TCP's MSS or in the length of UDP's data, so
 * that a record can be matched to its process. Flags: 1 IPv6, 2 not blocking, 4 UDP,
 * 8 connected (UDP), 16 waits to be killed. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { IPV6 = 1, NONBLOCKING = 2, UDP = 4, CONNECTED = 8, STAYS = 16 };

int main(int argc, char **argv)
{
	static char data[65536];
	int number = argc > 1 ? atoi(argv[1]) : 0, flags = argc > 2 ? atoi(argv[2]) : 0;
	int family = flags & IPV6 ? AF_INET6 : AF_INET;
	int s = socket(family, SOCK_CLOEXEC | (flags & UDP ? SOCK_DGRAM : SOCK_STREAM) |
				       (flags & NONBLOCKING ? SOCK_NONBLOCK : 0), 0);
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(443) };
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(443) };
	struct sockaddr *to = flags & IPV6 ? (void *)&six : (void *)&four;
	socklen_t size = flags & IPV6 ? sizeof(six) : sizeof(four);

	inet_pton(AF_INET, "203.0.113.7", &four.sin_addr);
	inet_pton(AF_INET6, "2001:db8::7", &six.sin6_addr);
	if (!(flags & UDP)) {
		setsockopt(s, IPPROTO_TCP, TCP_MAXSEG, &number, sizeof(number));
		connect(s, to, size);
	} else if (flags & CONNECTED) {
		connect(s, to, size);
		send(s, data, number, 0);
	} else {
		sendto(s, data, number, 0, to, size);
	}
	if (flags & STAYS)
		pause();
	_exit(0);
}
