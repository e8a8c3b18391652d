/* The product of two matrices of doubles, SCALE times. */
#include "bench.h"

enum { SIZE = 160 };
static double a[SIZE][SIZE], b[SIZE][SIZE], c[SIZE][SIZE];

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1, seed = 31415926;
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++) {
            a[i][j] = (double)(next_random(&seed) >> 40) / (1 << 24);
            b[i][j] = (double)(next_random(&seed) >> 40) / (1 << 24);
        }
    begin();
    for (long turn = 0; turn < scale; turn++) {
        memset(c, 0, sizeof c);
        for (int i = 0; i < SIZE; i++)
            for (int k = 0; k < SIZE; k++)
                for (int j = 0; j < SIZE; j++)
                    c[i][j] += a[i][k] * b[k][j];
        for (int i = 0; i < SIZE; i++) {
            sum = mix_double(sum, c[i][SIZE - 1 - i]);
            for (int j = 0; j < SIZE; j++)
                a[i][j] = c[i][j] / (SIZE / 4); /* the elements stay near 1 */
        }
    }
    return end(sum);
}
