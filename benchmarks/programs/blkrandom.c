/* Read SCALE blocks of 4 KiB from random places of the disk /dev/vda, one at a time, past the page cache. */
#include "bench.h"

#include <fcntl.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t *buffer, sum = 1, seed = 577215664;
    int disk = open("/dev/vda", O_RDONLY | O_DIRECT);
    if (disk < 0 || posix_memalign((void **)&buffer, 4096, 4096))
        fail("/dev/vda");
    uint64_t blocks = (uint64_t)lseek(disk, 0, SEEK_END) / 4096;
    begin();
    for (long turn = 0; turn < scale; turn++) {
        if (pread(disk, buffer, 4096, (off_t)(next_random(&seed) % blocks * 4096)) != 4096)
            fail("pread");
        sum = mix(sum, buffer[turn % 512]);
    }
    return end(sum);
}
