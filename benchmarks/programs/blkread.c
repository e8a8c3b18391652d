/* Read the disk /dev/vda from start to end, past the page cache, 1 MiB at a time, SCALE times. */
#include "bench.h"

#include <fcntl.h>
#include <unistd.h>

enum { CHUNK = 1 << 20 };

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t *buffer, sum = 1;
    int disk = open("/dev/vda", O_RDONLY | O_DIRECT);
    if (disk < 0 || posix_memalign((void **)&buffer, 4096, CHUNK))
        fail("/dev/vda");
    begin();
    for (long turn = 0; turn < scale; turn++) {
        ssize_t got;
        if (lseek(disk, 0, SEEK_SET))
            fail("lseek");
        while ((got = read(disk, buffer, CHUNK)) > 0)
            for (ssize_t i = 0; i < got / 8; i += 512)
                sum = mix(sum, buffer[i]);
        if (got < 0)
            fail("read");
    }
    return end(sum);
}
