/* Starts many short-lived processes, some of them at the same time.
 *
 * swarm FIRST END FLAGS MASK AT_ONCE PROGRAM…: for each number it starts one of the
 * programs in turn, with the number and with FLAGS plus those bits of MASK that the number has.
 * It prints the number and the pid of each, and ends when all have ended. */
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv)
{
	int first = atoi(argv[1]), end = atoi(argv[2]), flags = atoi(argv[3]), mask = atoi(argv[4]);
	int at_once = atoi(argv[5]), programs = argc - 6, running = 0;

	for (int number = first; number < end; number++) {
		char *program = argv[6 + number % programs], text[16], bits[16];
		char *arguments[] = { program, text, bits, NULL };
		pid_t pid;

		while (running >= at_once) {
			wait(NULL);
			running--;
		}
		snprintf(text, sizeof(text), "%d", number);
		snprintf(bits, sizeof(bits), "%d", flags | (number & mask));
		if (posix_spawn(&pid, program, NULL, NULL, arguments, environ))
			return 1;
		printf("%d %d\n", number, pid);
		running++;
	}
	while (wait(NULL) > 0)
		;
	return 0;
}
