/* Makes one attempt: sender tcp|udp ADDRESS PORT exits|stays */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_in target = { .sin_family = AF_INET };
	int is_tcp, sock;

	if (argc != 5)
		return 2;
	is_tcp = !strcmp(argv[1], "tcp");
	inet_pton(AF_INET, argv[2], &target.sin_addr);
	target.sin_port = htons(atoi(argv[3]));
	sock = socket(AF_INET, (is_tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0);
	if (is_tcp)
		(void)!connect(sock, (struct sockaddr *)&target, sizeof(target));
	else
		sendto(sock, "bypass", 6, 0, (struct sockaddr *)&target, sizeof(target));
	if (!strcmp(argv[4], "stays"))
		pause();
	return 0;
}
