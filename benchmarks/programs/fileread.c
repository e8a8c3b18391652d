/* Read a file of 4 MiB that is in the page cache from start to end, SCALE times. */
#include "bench.h"

#include <fcntl.h>
#include <unistd.h>

enum { CHUNK = 1 << 16, CHUNKS = 64 };
static uint64_t buffer[CHUNK / 8];

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    char name[] = "/tmp/fileread-XXXXXX";
    uint64_t sum = 1, seed = 577215664;
    int file = mkstemp(name);
    if (file < 0)
        fail(name);
    unlink(name);
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        for (size_t i = 0; i < CHUNK / 8; i++)
            buffer[i] = next_random(&seed);
        if (write(file, buffer, CHUNK) != CHUNK)
            fail("write");
    }
    begin();
    for (long turn = 0; turn < scale; turn++) {
        if (lseek(file, 0, SEEK_SET))
            fail("lseek");
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            if (read(file, buffer, CHUNK) != CHUNK)
                fail("read");
            for (size_t i = 0; i < CHUNK / 8; i += 512)
                sum = mix(sum, buffer[i]);
        }
    }
    return end(sum);
}
