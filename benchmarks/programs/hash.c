/* A hash table with string keys (FNV-1a, linear probing) and SHA-256 of a buffer, SCALE times. */
#include "bench.h"

enum { SLOTS = 1 << 14, KEYS = 9000, LENGTH = 16, BUFFER = 1 << 16 };

struct slot {
    char key[LENGTH];
    uint32_t used, value;
};

static struct slot table[SLOTS];
static uint8_t buffer[BUFFER];

static uint64_t fnv(const char *key) {
    uint64_t sum = 0xcbf29ce484222325u;
    for (; *key; key++)
        sum = (sum ^ (uint8_t)*key) * 0x100000001b3u;
    return sum;
}

static struct slot *find(const char *key) {
    for (uint64_t place = fnv(key);; place++) {
        struct slot *slot = &table[place % SLOTS];
        if (!slot->used || strcmp(slot->key, key) == 0)
            return slot;
    }
}

static void make_key(char *key, uint64_t number) {
    for (int i = 0; i < LENGTH - 4; i++, number /= 23)
        key[i] = (char)('a' + number % 23);
    key[LENGTH - 4] = 0;
}

static uint64_t use_table(uint64_t seed) {
    char key[LENGTH] = {0};
    uint64_t state = seed, sum = seed;
    memset(table, 0, sizeof table);
    for (uint32_t i = 0; i < KEYS; i++) {
        make_key(key, next_random(&state));
        struct slot *slot = find(key);
        memcpy(slot->key, key, LENGTH);
        slot->used = 1;
        slot->value = i;
    }
    state = seed;
    for (uint32_t i = 0; i < KEYS; i++) {
        make_key(key, next_random(&state) + (i & 1)); /* every other one is not there */
        struct slot *slot = find(key);
        sum = mix(sum, slot->used ? slot->value : i + 7u);
    }
    return sum;
}

/* The round constants are the fractional parts of the cube roots of the first primes (FIPS 180-4). */
static uint32_t constants[64];

static uint32_t root_fraction(uint32_t prime, int cube) {
    /* The greatest x with x^k <= prime * 2^(32k), in integers; its low 32 bits are the fraction. */
    unsigned __int128 low = 0, high = (unsigned __int128)1 << 37;
    while (high - low > 1) {
        unsigned __int128 x = (low + high) / 2;
        int fits = cube ? x * x * x <= (unsigned __int128)prime << 96 : x * x <= (unsigned __int128)prime << 64;
        if (fits)
            low = x;
        else
            high = x;
    }
    return (uint32_t)low;
}

static uint32_t state0[8];

static void make_constants(void) {
    int count = 0;
    for (uint32_t n = 2; count < 64; n++) {
        uint32_t divisor = 2;
        while (n % divisor)
            divisor++;
        if (divisor < n)
            continue;
        if (count < 8)
            state0[count] = root_fraction(n, 0);
        constants[count++] = root_fraction(n, 1);
    }
}

static uint32_t rotate(uint32_t x, int by) {
    return x >> by | x << (32 - by);
}

static void sha256_block(uint32_t *state, const uint8_t *block) {
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++, block += 4)
        w[i] = (uint32_t)block[0] << 24 | (uint32_t)block[1] << 16 | (uint32_t)block[2] << 8 | block[3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(v, state, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]), majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
        uint32_t one = v[7] + (rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25)) + choice + constants[i] + w[i];
        uint32_t two = (rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22)) + majority;
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += one;
        v[0] = one + two;
    }
    for (int i = 0; i < 8; i++)
        state[i] += v[i];
}

/* The first 64 bits of the hash of `length` bytes, a multiple of 64. */
static uint64_t sha256(const uint8_t *data, uint64_t length) {
    uint32_t state[8];
    uint8_t last[64] = {0x80};
    memcpy(state, state0, sizeof state);
    for (uint64_t at = 0; at < length; at += 64)
        sha256_block(state, data + at);
    for (int i = 0; i < 8; i++)
        last[63 - i] = (uint8_t)(length * 8 >> 8 * i);
    sha256_block(state, last);
    return (uint64_t)state[0] << 32 | state[1];
}

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1, seed = 20260101;
    make_constants();
    if (sha256(buffer, 0) != 0xe3b0c44298fc1c14u) /* of the empty message */
        return 1;
    begin();
    for (long turn = 0; turn < scale; turn++) {
        sum = mix(sum, use_table(seed + (uint64_t)turn));
        for (size_t i = 0; i < BUFFER; i += 8) {
            uint64_t value = next_random(&seed);
            memcpy(buffer + i, &value, 8);
        }
        sum = mix(sum, sha256(buffer, BUFFER));
    }
    return end(sum);
}
