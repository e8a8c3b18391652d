/* The cheapest system call, SCALE times 10000. */
#include "bench.h"

#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t same = 0;
    long parent = getppid();
    begin();
    for (long turn = 0; turn < scale; turn++)
        for (int i = 0; i < 10000; i++)
            same += syscall(SYS_getppid) == parent;
    return end(mix(1, same));
}
