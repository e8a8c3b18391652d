/* Single precision: a signal of 8192 samples through a filter of 32 taps and one with feedback, SCALE times. */
#include "bench.h"

enum { SAMPLES = 8192, TAPS = 32 };
static float signal[SAMPLES + TAPS], output[SAMPLES], taps[TAPS];

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1, seed = 1618033;
    for (int i = 0; i < SAMPLES + TAPS; i++)
        signal[i] = (float)(next_random(&seed) >> 48) / 65536.0f - 0.5f;
    for (int i = 0; i < TAPS; i++)
        taps[i] = 1.0f / (float)(1 + i + (i & 3));
    begin();
    for (long turn = 0; turn < scale; turn++) {
        float one = 0, two = 0, peak = 0;
        for (int i = 0; i < SAMPLES; i++) {
            float total = 0;
            for (int k = 0; k < TAPS; k++)
                total += signal[i + k] * taps[k];
            float value = total + 1.6f * one - 0.81f * two;
            two = one;
            one = value;
            output[i] = value;
            if (value > peak)
                peak = value;
        }
        for (int i = 0; i < SAMPLES; i++)
            signal[i] = output[i] / (peak * 2);
        sum = mix_double(sum, (double)peak);
    }
    return end(sum);
}
