/* Calls from page to page: a recursion between functions that lie on pages of their own, directly and through a table
 * of pointers, SCALE times. */
#include "bench.h"

#define PAGE_OF_ITS_OWN __attribute__((noinline, aligned(4096)))

typedef uint64_t function(uint64_t value, int depth);
static function increase, spread, fold;
static function *const table[4] = {increase, spread, fold, spread};

PAGE_OF_ITS_OWN static uint64_t increase(uint64_t value, int depth) {
    return depth ? spread(value + 0x1234567, depth - 1) + 1 : value;
}

PAGE_OF_ITS_OWN static uint64_t spread(uint64_t value, int depth) {
    return depth ? table[value >> 62](value * 0x9E3779B97F4A7C15u, depth - 1) ^ value : value;
}

PAGE_OF_ITS_OWN static uint64_t fold(uint64_t value, int depth) {
    return depth ? increase(value ^ value >> 31, depth - 1) + (value & 1) : value;
}

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1;
    begin();
    for (long turn = 0; turn < scale; turn++)
        for (uint64_t i = 0; i < 1000; i++)
            sum = mix(sum, table[i & 3](sum, 20));
    return end(sum);
}
