/* Forks as fast as possible until SIGTERM, or for a number of seconds; prints the number of children. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t is_over;

static void end(int number)
{
	(void)number;
	is_over = 1;
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = end};
	long children = 0;

	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGALRM, &action, NULL);
	alarm(argc > 1 ? atoi(argv[1]) : 1);
	puts("begun");
	fflush(stdout);
	while (!is_over) {
		for (int i = 0; i < 16; i++) {
			if (fork() == 0)
				_exit(0);
			children++;
		}
		while (wait(NULL) > 0)
			;
	}
	while (wait(NULL) > 0)
		;
	printf("%ld\n", children);
	return 0;
}
