/* Write to each page of 16 MiB of fresh memory and give it back, SCALE times. */
#include "bench.h"

#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 4096 };

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1;
    begin();
    for (long turn = 0; turn < scale; turn++) {
        uint8_t *area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (area == MAP_FAILED)
            fail("mmap");
        if (madvise(area, PAGES * PAGE, MADV_NOHUGEPAGE) && turn < 0)
            fail("madvise"); /* a kernel without huge pages refuses; that is as good */
        for (size_t page = 0; page < PAGES; page++)
            area[page * PAGE + (page * 64) % PAGE] += (uint8_t)(page + 1);
        for (size_t page = 0; page < PAGES; page += 256)
            sum = mix(sum, area[page * PAGE + (page * 64) % PAGE]);
        munmap(area, PAGES * PAGE);
    }
    return end(sum);
}
