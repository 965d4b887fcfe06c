/* Changes the time of day of one process: when preloaded, the time of day is shifted by the seconds
 * written in the file that CLOCK names; the monotonic clock is unchanged. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t id, struct timespec *now)
{
	static int (*real)(clockid_t, struct timespec *);
	const char *path = getenv("CLOCK");
	long seconds = 0;

	if (!real)
		real = dlsym(RTLD_NEXT, "clock_gettime");
	int result = real(id, now);
	if (id != CLOCK_REALTIME || !path)
		return result;
	FILE *file = fopen(path, "re");
	if (file) {
		if (fscanf(file, "%ld", &seconds) == 1)
			now->tv_sec += seconds;
		fclose(file);
	}
	return result;
}
