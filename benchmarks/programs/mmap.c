/* Map 16 pages, write to one, protect some, make them writable again, write to those, unmap; SCALE times 100. */
#include "bench.h"

#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 16 };

int main(int argc, char **argv) {
    long count = argument(argc, argv, 1) * 100;
    uint64_t sum = 1;
    begin();
    for (long turn = 0; turn < count; turn++) {
        volatile uint8_t *area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (area == MAP_FAILED)
            fail("mmap");
        uint8_t *middle = (uint8_t *)area + 4 * PAGE;
        area[4 * PAGE] = (uint8_t)turn;
        if (mprotect(middle, 4 * PAGE, PROT_READ))
            fail("mprotect");
        sum = mix(sum, area[4 * PAGE]);
        if (mprotect(middle, 4 * PAGE, PROT_READ | PROT_WRITE))
            fail("mprotect");
        area[4 * PAGE] += 3;
        area[5 * PAGE] = 1;
        sum = mix(sum, (uint64_t)area[4 * PAGE] + area[5 * PAGE]);
        munmap((void *)(uintptr_t)area, PAGES * PAGE);
    }
    return end(sum);
}
