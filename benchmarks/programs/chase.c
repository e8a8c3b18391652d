/* Follow pointers in a random cycle through MIB mebibytes, SCALE times 100000 steps.
 *
 *     chase MIB SCALE
 */
#include "bench.h"

struct node {
    struct node *next;
    uint64_t number, unused[6]; /* one cache line */
};

int main(int argc, char **argv) {
    size_t count = (size_t)argument(argc, argv, 1) * (1 << 20) / sizeof(struct node);
    long scale = argument(argc, argv, 2);
    struct node *nodes = aligned_alloc(64, count * sizeof *nodes);
    uint32_t *order = malloc(count * sizeof *order);
    uint64_t seed = 424242, sum = 1;
    if (!nodes || !order)
        fail("memory");
    for (size_t i = 0; i < count; i++)
        order[i] = (uint32_t)i;
    for (size_t i = count - 1; i > 0; i--) {
        size_t other = next_random(&seed) % (i + 1);
        uint32_t keep = order[i];
        order[i] = order[other];
        order[other] = keep;
    }
    for (size_t i = 0; i < count; i++) {
        nodes[order[i]].next = &nodes[order[(i + 1) % count]];
        nodes[order[i]].number = i;
    }
    free(order);
    struct node *node = nodes;
    begin();
    for (long turn = 0; turn < scale; turn++) {
        for (int step = 0; step < 100000; step++)
            node = node->next;
        sum = mix(sum, node->number);
    }
    return end(sum);
}
