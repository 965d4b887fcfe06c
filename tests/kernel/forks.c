/* Forks as fast as possible for a number of milliseconds; prints the number of children. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	long end = now_ms() + (argc > 1 ? atol(argv[1]) : 0), children = 0;

	while (now_ms() < end) {
		for (int i = 0; i < 16; i++) {
			if (fork() == 0)
				_exit(0);
			children++;
		}
		while (wait(NULL) > 0)
			;
	}
	printf("%ld\n", children);
	return 0;
}
