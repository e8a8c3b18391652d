/* The spectral norm of the infinite matrix 1, 1/2, 1/3; 1/3 ... (A[i][j] = 1 / ((i+j)(i+j+1)/2 + i + 1)), cut off, by
 * SCALE steps of the power method. */
#include "bench.h"

#include <math.h>

enum { SIZE = 400 };

static double element(int row, int column) {
    int diagonal = row + column;
    return 1.0 / (diagonal * (diagonal + 1) / 2 + row + 1);
}

static void multiply(const double *in, double *out, int transposed) {
    for (int i = 0; i < SIZE; i++) {
        double total = 0;
        for (int j = 0; j < SIZE; j++)
            total += (transposed ? element(j, i) : element(i, j)) * in[j];
        out[i] = total;
    }
}

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    static double u[SIZE], v[SIZE], w[SIZE];
    uint64_t sum = 1;
    for (int i = 0; i < SIZE; i++)
        u[i] = 1;
    begin();
    for (long turn = 0; turn < scale; turn++) {
        multiply(u, w, 0);
        multiply(w, v, 1);
        double across = 0, along = 0;
        for (int i = 0; i < SIZE; i++) {
            across += u[i] * v[i];
            along += u[i] * u[i];
        }
        double square = across / along; /* it tends to the square of the norm */
        sum = mix_double(sum, sqrt(square));
        for (int i = 0; i < SIZE; i++)
            u[i] = v[i] / square;
    }
    return end(sum);
}
