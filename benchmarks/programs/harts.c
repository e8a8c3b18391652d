/* COUNT busy processes, each bound to a hart of its own, do the same work side by side; SCALE is the work of each.
 *
 *     harts COUNT SCALE
 */
#include "bench.h"

#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t work(long scale) {
    static uint64_t cells[512];
    uint64_t seed = 141421356, sum = 1;
    for (long i = 0; i < scale * 10000; i++) {
        uint64_t number = next_random(&seed);
        cells[number & 511] += number >> 9;
        sum += cells[number >> 55];
    }
    return sum;
}

int main(int argc, char **argv) {
    long count = argument(argc, argv, 1), scale = argument(argc, argv, 2);
    int pipes[2], status, bad = 0;
    uint64_t sum = 1, first = 0;
    cpu_set_t allowed;
    if (pipe(pipes))
        fail("pipe");
    if (sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) < count) {
        fprintf(stderr, "harts: fewer than %ld processors\n", count);
        return 1;
    }
    begin();
    size_t cpu = 0;
    for (long i = 0; i < count; i++, cpu++) {
        while (!CPU_ISSET(cpu, &allowed))
            cpu++;
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0) {
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            if (sched_setaffinity(0, sizeof one, &one))
                _exit(1);
            uint64_t result = work(scale);
            _exit(write(pipes[1], &result, sizeof result) != sizeof result);
        }
    }
    for (long i = 0; i < count; i++) {
        uint64_t result = 0;
        wait(&status);
        bad |= status;
        if (status == 0 && read(pipes[0], &result, sizeof result) != sizeof result)
            bad = 1;
        if (i == 0)
            first = result;
        bad |= result != first;
    }
    sum = mix(sum, first); /* not the count: one and two processes must agree */
    return bad ? 1 : end(sum);
}
