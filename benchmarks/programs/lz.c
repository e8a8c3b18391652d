/* LZ77 with a hash of the last occurrences and one-deep lazy matching: compress, decompress and compare, SCALE times. */
#include "bench.h"

enum { SIZE = 1 << 18, HASH_BITS = 14, WINDOW = 1 << 15, CHAIN = 16, SHORTEST = 4, LONGEST = 255 };

static uint8_t text[SIZE], packed[SIZE * 2], unpacked[SIZE];
static int32_t head[1 << HASH_BITS], previous[SIZE];

/* Words of a small vocabulary, the common ones more often. */
static void make_text(uint64_t seed) {
    static const char *const letters = "etaoinshrdlucmfwypvbgkqjxz";
    size_t at = 0;
    while (at < SIZE) {
        uint64_t bits = next_random(&seed);
        uint64_t word = (bits & 1023) * (bits >> 10 & 1023) / 1024 + 1;
        uint64_t shape = word * 0x9E3779B97F4A7C15u;
        size_t length = 2 + (shape >> 60);
        for (size_t i = 0; i < length && at < SIZE; i++, shape = shape * 25 + 7)
            text[at++] = (uint8_t)letters[(shape >> 40) % 26];
        if (at < SIZE)
            text[at++] = (bits >> 50 & 15) ? ' ' : '\n';
    }
}

static uint32_t hash_at(size_t at) {
    uint32_t four;
    memcpy(&four, text + at, 4);
    return four * 2654435761u >> (32 - HASH_BITS);
}

static void enter(size_t at) {
    if (at + 4 > SIZE)
        return;
    uint32_t hash = hash_at(at);
    previous[at] = head[hash];
    head[hash] = (int32_t)at;
}

static size_t longest_match(size_t at, size_t *distance) {
    size_t best = 0;
    if (at + 4 > SIZE)
        return 0;
    int32_t place = head[hash_at(at)];
    for (int tries = 0; place >= 0 && tries < CHAIN && at - (size_t)place < WINDOW; tries++, place = previous[place]) {
        size_t length = 0, limit = SIZE - at < LONGEST ? SIZE - at : LONGEST;
        while (length < limit && text[(size_t)place + length] == text[at + length])
            length++;
        if (length > best) {
            best = length;
            *distance = at - (size_t)place;
        }
    }
    return best >= SHORTEST ? best : 0;
}

/* A token is a flag byte for eight items; an item is a literal byte, or a length and a distance of two bytes. */
static size_t compress(void) {
    size_t at = 0, out = 0, flags = 0;
    int item = 8;
    memset(head, 0xff, sizeof head);
    while (at < SIZE) {
        if (item == 8) {
            flags = out++;
            packed[flags] = 0;
            item = 0;
        }
        size_t distance = 0, later, length = longest_match(at, &distance);
        enter(at);
        if (length && length < 32 && longest_match(at + 1, &later) > length)
            length = 0;
        if (length) {
            packed[flags] |= (uint8_t)(1 << item);
            packed[out++] = (uint8_t)length;
            packed[out++] = (uint8_t)distance;
            packed[out++] = (uint8_t)(distance >> 8);
            for (size_t i = 1; i < length; i++)
                enter(at + i);
            at += length;
        } else {
            packed[out++] = text[at++];
        }
        item++;
    }
    return out;
}

static size_t decompress(size_t size) {
    size_t in = 0, out = 0;
    while (in < size) {
        uint8_t flags = packed[in++];
        for (int item = 0; item < 8 && in < size; item++, flags >>= 1) {
            if (!(flags & 1)) {
                unpacked[out++] = packed[in++];
                continue;
            }
            size_t length = packed[in], from = out - (packed[in + 1] | (size_t)packed[in + 2] << 8);
            in += 3;
            while (length--)
                unpacked[out++] = unpacked[from++];
        }
    }
    return out;
}

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1;
    begin();
    for (long turn = 0; turn < scale; turn++) {
        make_text((uint64_t)turn + 12345);
        size_t size = compress();
        if (decompress(size) != SIZE || memcmp(text, unpacked, SIZE) != 0)
            return 1;
        sum = mix(sum, size);
        for (size_t i = 0; i < size; i += 97)
            sum = mix(sum, packed[i]);
    }
    return end(sum);
}
