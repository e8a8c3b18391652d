/* The sieve of Eratosthenes over half a million bytes, SCALE times. */
#include "bench.h"

enum { SIZE = 500000 };
static uint8_t composite[SIZE + 4096];

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1;
    begin();
    for (long turn = 0; turn < scale; turn++) {
        size_t size = SIZE + (size_t)(turn & 4095);
        memset(composite, 0, size);
        uint64_t count = 0, last = 0;
        for (size_t i = 2; i < size; i++) {
            if (composite[i])
                continue;
            count++;
            last = i;
            for (size_t j = i * i; j < size; j += i)
                composite[j] = 1;
        }
        sum = mix(mix(sum, count), last);
    }
    return end(sum);
}
