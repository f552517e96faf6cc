// A clock that is off by LITEJOIN_CLOCK_OFFSET seconds, for a program that has this loaded before its C library
// (LD_PRELOAD). It asks the kernel and looks nothing up by name: a lookup allocates, and an allocator may ask for the time
// before it can.
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
    const char *seconds = getenv("LITEJOIN_CLOCK_OFFSET");
    return seconds ? atol(seconds) : 0;
}

// How long something takes, by CLOCK_MONOTONIC, is true all the same.
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        now->tv_sec += offset();
    }
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = (int)syscall(SYS_gettimeofday, now, zone);
    if (!failed) {
        now->tv_sec += offset();
    }
    return failed;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) {
        *result = now.tv_sec;
    }
    return now.tv_sec;
}
