/* Two processes pass a number to and fro through two pipes, SCALE times 100. */
#include "bench.h"

#include <sys/wait.h>
#include <unistd.h>

static void put(int pipe, uint64_t value) {
    if (write(pipe, &value, sizeof value) != sizeof value)
        _exit(1);
}

static uint64_t get(int pipe) {
    uint64_t value;
    ssize_t size = read(pipe, &value, sizeof value);
    if (size != sizeof value)
        _exit(size == 0 ? 0 : 1);
    return value;
}

int main(int argc, char **argv) {
    long count = argument(argc, argv, 1) * 100;
    int there[2], back[2], status;
    if (pipe(there) || pipe(back))
        fail("pipe");
    begin();
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        close(there[1]);
        for (;;)
            put(back[1], mix(get(there[0]), 1));
    }
    close(there[0]);
    uint64_t value = 1;
    for (long i = 0; i < count; i++) {
        put(there[1], value);
        value = get(back[0]);
    }
    close(there[1]);
    if (waitpid(child, &status, 0) != child || status)
        return 1;
    return end(value);
}
