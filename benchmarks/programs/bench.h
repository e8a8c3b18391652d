/* What every program of the suite shares: its scale, its clock, its random numbers and how it reports.
 *
 * A program prints "begin" when its preparations are done, and then, when the work is done,
 *     result <checksum, 16 hexadecimal digits>
 *     seconds <float>
 * The host takes the time between the arrival of "begin" and "result"; "seconds" is what the guest's clock says.
 * The checksum depends on the arguments only, so every machine must print the same.
 */
#ifndef BENCH_H
#define BENCH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct timespec bench_start;

__attribute__((unused)) static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* The argument at `index`, a positive number. */
__attribute__((unused)) static long argument(int argc, char **argv, int index) {
    long value = argc > index ? strtol(argv[index], NULL, 10) : 0;
    if (value <= 0) {
        fprintf(stderr, "usage: %s SCALE, a positive number\n", argv[0]);
        exit(2);
    }
    return value;
}

__attribute__((unused)) static uint64_t mix(uint64_t sum, uint64_t value) {
    sum = (sum ^ value) * 0x9E3779B97F4A7C15u;
    return sum << 29 | sum >> 35;
}

__attribute__((unused)) static uint64_t mix_double(uint64_t sum, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return mix(sum, bits);
}

/* xorshift64: the same numbers everywhere. `*state` must not be 0. */
__attribute__((unused)) static uint64_t next_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

__attribute__((unused)) static void begin(void) {
    printf("begin\n");
    fflush(stdout);
    clock_gettime(CLOCK_MONOTONIC, &bench_start);
}

__attribute__((unused)) static int end(uint64_t checksum) {
    struct timespec stop;
    clock_gettime(CLOCK_MONOTONIC, &stop);
    double seconds = (double)(stop.tv_sec - bench_start.tv_sec) + (double)(stop.tv_nsec - bench_start.tv_nsec) / 1e9;
    printf("result %016llx\nseconds %.6f\n", (unsigned long long)checksum, seconds);
    fflush(stdout);
    return 0;
}

#endif
