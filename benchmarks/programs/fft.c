/* A fast Fourier transform of 4096 complex doubles and its inverse, SCALE times. */
#include "bench.h"

#include <math.h>

enum { BITS = 12, SIZE = 1 << BITS };

struct number {
    double real, imaginary;
};

static struct number data[SIZE], roots[SIZE / 2];

/* roots[k] = exp(-2 pi i k / SIZE), by halving angles: only operations that IEEE 754 rounds the same everywhere. */
static void make_roots(void) {
    double cosine = -1, sine = 0; /* of pi */
    roots[0].real = 1;
    for (int step = SIZE / 2; step >= 1; step /= 2) { /* (cosine, sine) belong to the angle 2 pi step / SIZE */
        if (step < SIZE / 2)
            for (int k = 0; k + step < SIZE / 2; k += 2 * step) {
                struct number *from = &roots[k], *to = &roots[k + step];
                to->real = from->real * cosine + from->imaginary * sine;
                to->imaginary = from->imaginary * cosine - from->real * sine;
            }
        double half = step == SIZE / 2 ? 0 : sqrt((1 + cosine) / 2);
        sine = step == SIZE / 2 ? 1 : sine / (2 * half);
        cosine = half;
    }
}

static void transform(int inverse) {
    for (unsigned i = 0, reversed = 0; i < SIZE; i++) {
        if (i < reversed) {
            struct number keep = data[i];
            data[i] = data[reversed];
            data[reversed] = keep;
        }
        unsigned bit = SIZE / 2;
        while (reversed & bit)
            reversed ^= bit, bit /= 2;
        reversed |= bit;
    }
    for (int half = 1; half < SIZE; half *= 2)
        for (int start = 0; start < SIZE; start += 2 * half)
            for (int k = 0; k < half; k++) {
                struct number *a = &data[start + k], *b = a + half, root = roots[k * (SIZE / 2 / half)];
                if (inverse)
                    root.imaginary = -root.imaginary;
                double real = b->real * root.real - b->imaginary * root.imaginary;
                double imaginary = b->real * root.imaginary + b->imaginary * root.real;
                b->real = a->real - real;
                b->imaginary = a->imaginary - imaginary;
                a->real += real;
                a->imaginary += imaginary;
            }
}

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1, seed = 271828182;
    make_roots();
    for (int i = 0; i < SIZE; i++)
        data[i].real = (double)(next_random(&seed) >> 40) / (1 << 24) - 0.5;
    double first = data[1].real;
    begin();
    for (long turn = 0; turn < scale; turn++) {
        transform(0);
        for (int i = 0; i < SIZE; i += 64)
            sum = mix_double(mix_double(sum, data[i].real), data[i].imaginary);
        transform(1);
        for (int i = 0; i < SIZE; i++) {
            data[i].real /= SIZE;
            data[i].imaginary /= SIZE;
        }
    }
    if (fabs(data[1].real - first) > 1e-9)
        return 1;
    return end(sum);
}
