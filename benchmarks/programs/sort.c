/* Quicksort of integers and merge sort of strings, SCALE times over fresh data. */
#include "bench.h"

enum { NUMBERS = 40000, STRINGS = 8000, LENGTH = 12 };

static int64_t numbers[NUMBERS];
static char text[STRINGS][LENGTH];
static const char *strings[STRINGS], *spare[STRINGS];

static void quicksort(int64_t *low, int64_t *high) { /* both inclusive */
    while (high - low > 12) {
        int64_t *middle = low + (high - low) / 2;
        int64_t pivot = *low < *middle ? (*middle < *high ? *middle : (*low < *high ? *high : *low))
                                       : (*low < *high ? *low : (*middle < *high ? *high : *middle));
        int64_t *left = low, *right = high;
        while (left <= right) {
            while (*left < pivot)
                left++;
            while (*right > pivot)
                right--;
            if (left <= right) {
                int64_t keep = *left;
                *left++ = *right;
                *right-- = keep;
            }
        }
        if (right - low < high - left) {
            quicksort(low, right);
            low = left;
        } else {
            quicksort(left, high);
            high = right;
        }
    }
    for (int64_t *next = low + 1; next <= high; next++) {
        int64_t value = *next, *place = next;
        for (; place > low && place[-1] > value; place--)
            *place = place[-1];
        *place = value;
    }
}

static int before(const char *a, const char *b) {
    while (*a && *a == *b)
        a++, b++;
    return (unsigned char)*a <= (unsigned char)*b;
}

static void merge_sort(const char **items, const char **room, size_t count) {
    if (count < 2)
        return;
    size_t half = count / 2, left = 0, right = half, out = 0;
    merge_sort(items, room, half);
    merge_sort(items + half, room + half, count - half);
    memcpy(room, items, count * sizeof *items);
    while (left < half && right < count)
        items[out++] = before(room[left], room[right]) ? room[left++] : room[right++];
    while (left < half)
        items[out++] = room[left++];
    while (right < count)
        items[out++] = room[right++];
}

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1, seed = 88172645463325252u;
    begin();
    for (long turn = 0; turn < scale; turn++) {
        for (size_t i = 0; i < NUMBERS; i++)
            numbers[i] = (int64_t)next_random(&seed);
        quicksort(numbers, numbers + NUMBERS - 1);
        for (size_t i = 1; i < NUMBERS; i++)
            if (numbers[i - 1] > numbers[i])
                return 1;
        for (size_t i = 0; i < STRINGS; i++) {
            uint64_t bits = next_random(&seed);
            for (size_t j = 0; j < LENGTH - 1; j++, bits >>= 3)
                text[i][j] = (char)('a' + (bits & 7));
            strings[i] = text[i];
        }
        merge_sort(strings, spare, STRINGS);
        for (size_t i = 0; i < NUMBERS; i += 1000)
            sum = mix(sum, (uint64_t)numbers[i]);
        for (size_t i = 0; i < STRINGS; i += 100)
            sum = mix(sum, (uint64_t)(strings[i] - text[0]));
    }
    return end(sum);
}
