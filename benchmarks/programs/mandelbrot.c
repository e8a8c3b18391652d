/* How long points of a grid stay near the origin under z -> z^2 + c; double precision, SCALE grids. */
#include "bench.h"

enum { WIDTH = 96, HEIGHT = 64, TURNS = 150 };

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1;
    begin();
    for (long turn = 0; turn < scale; turn++) {
        double size = 1.5 / (1.0 + (double)(turn & 15));
        for (int row = 0; row < HEIGHT; row++) {
            uint64_t line = 0;
            for (int column = 0; column < WIDTH; column++) {
                double real = size * (column - WIDTH / 2) / (WIDTH / 2) - 0.6;
                double imaginary = size * (row - HEIGHT / 2) / (HEIGHT / 2);
                double x = 0, y = 0, xx = 0, yy = 0;
                int count = 0;
                while (count < TURNS && xx + yy <= 4.0) {
                    y = 2 * x * y + imaginary;
                    x = xx - yy + real;
                    xx = x * x;
                    yy = y * y;
                    count++;
                }
                line += (uint64_t)count;
            }
            sum = mix(sum, line);
        }
    }
    return end(sum);
}
