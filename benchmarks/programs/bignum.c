/* Numbers of many digits, SCALE times: pi by Machin's formula, and a factorial squared by long multiplication. */
#include "bench.h"

enum { LIMBS = 120, FACTORIAL = 700, WIDE = 200 };
static const uint64_t base = 1000000000; /* nine decimal digits in a limb of pi, which is a fixed-point number */

static void divide(uint32_t *number, uint32_t divisor) {
    uint64_t rest = 0;
    for (int i = 0; i < LIMBS; i++) {
        rest = rest * base + number[i];
        number[i] = (uint32_t)(rest / divisor);
        rest %= divisor;
    }
}

static void add(uint32_t *to, const uint32_t *number, int subtract) {
    int64_t carry = 0;
    for (int i = LIMBS - 1; i >= 0; i--) {
        int64_t digit = (int64_t)to[i] + (subtract ? -(int64_t)number[i] : (int64_t)number[i]) + carry;
        carry = digit < 0 ? -1 : digit >= (int64_t)base;
        to[i] = (uint32_t)(digit - carry * (int64_t)base);
    }
}

static int is_zero(const uint32_t *number) {
    for (int i = 0; i < LIMBS; i++)
        if (number[i])
            return 0;
    return 1;
}

/* Add (or subtract) factor * arctan(1/x). */
static void add_arctan(uint32_t *to, uint32_t factor, uint32_t x, int subtract) {
    uint32_t power[LIMBS] = {factor}, term[LIMBS];
    divide(power, x);
    for (uint32_t odd = 1; !is_zero(power); odd += 2, subtract = !subtract) {
        memcpy(term, power, sizeof term);
        divide(term, odd);
        add(to, term, subtract);
        divide(power, x * x);
    }
}

static uint64_t factorial_squared(uint32_t n) {
    uint32_t number[WIDE] = {1}, square[2 * WIDE] = {0};
    size_t length = 1;
    uint64_t sum = n;
    for (uint32_t factor = 2; factor <= n; factor++) {
        uint64_t carry = 0;
        for (size_t i = 0; i < length; i++) {
            carry += (uint64_t)number[i] * factor;
            number[i] = (uint32_t)carry;
            carry >>= 32;
        }
        if (carry)
            number[length++] = (uint32_t)carry;
    }
    for (size_t i = 0; i < length; i++) {
        uint64_t carry = 0;
        for (size_t j = 0; j < length; j++) {
            carry += (uint64_t)number[i] * number[j] + square[i + j];
            square[i + j] = (uint32_t)carry;
            carry >>= 32;
        }
        square[i + length] = (uint32_t)carry;
    }
    for (size_t i = 0; i < 2 * length; i++)
        sum = mix(sum, square[i]);
    return sum;
}

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1;
    begin();
    for (long turn = 0; turn < scale; turn++) {
        uint32_t pi[LIMBS] = {0};
        add_arctan(pi, 16, 5, 0);
        add_arctan(pi, 4, 239, 1);
        if (pi[0] != 3 || pi[1] != 141592653 || pi[2] != 589793238)
            return 1;
        for (int i = 0; i < LIMBS - 2; i++) /* the last limbs hold rounding errors */
            sum = mix(sum, pi[i]);
        sum = mix(sum, factorial_squared(FACTORIAL + (uint32_t)(turn & 15)));
    }
    return end(sum);
}
