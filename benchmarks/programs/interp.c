/* A bytecode interpreter (a switch in a loop) with a stack and variables runs a small program SCALE times: the lengths
 * of the sequences n -> n / 2 or 3 n + 1 that start below a limit. */
#include "bench.h"

enum operation { PUSH, LOAD, STORE, ADD, MULTIPLY, AND, SHIFT, LESS, EQUAL, JUMP, JUMP_ZERO, CALL, RETURN, STOP };
enum variable { N, LENGTH, START, LIMIT, LONGEST, TOTAL, VARIABLES };

struct instruction {
    enum operation operation;
    int operand;
};

static const struct instruction code[] = {
    {LOAD, START},   {LOAD, LIMIT},   {LESS, 0},      {JUMP_ZERO, 24},   /*  0: while start < limit */
    {LOAD, START},   {STORE, N},      {PUSH, 0},      {STORE, LENGTH},   /*  4 */
    {CALL, 25},      {LOAD, TOTAL},   {LOAD, LENGTH}, {ADD, 0},          /*  8 */
    {STORE, TOTAL},  {LOAD, LONGEST}, {LOAD, LENGTH}, {LESS, 0},         /* 12: if longest < length */
    {JUMP_ZERO, 19}, {LOAD, LENGTH},  {STORE, LONGEST}, {LOAD, START},   /* 16 */
    {PUSH, 1},       {ADD, 0},        {STORE, START}, {JUMP, 0},         /* 20 */
    {STOP, 0},       {LOAD, N},       {PUSH, 1},      {EQUAL, 0},        /* 24; 25: until n == 1 */
    {JUMP_ZERO, 30}, {RETURN, 0},     {LOAD, N},      {PUSH, 1},         /* 28; 30: if n & 1 */
    {AND, 0},        {JUMP_ZERO, 41}, {LOAD, N},      {PUSH, 3},         /* 32 */
    {MULTIPLY, 0},   {PUSH, 1},       {ADD, 0},       {STORE, N},        /* 36 */
    {JUMP, 45},      {LOAD, N},       {PUSH, 1},      {SHIFT, 0},        /* 40; 41: else */
    {STORE, N},      {LOAD, LENGTH},  {PUSH, 1},      {ADD, 0},          /* 44 */
    {STORE, LENGTH}, {JUMP, 25},                                         /* 48 */
};

static uint64_t run(const struct instruction *program, int64_t *variables) {
    int64_t stack[16] = {0};
    int64_t *top = stack;
    int returns[4] = {0}, depth = 0, at = 0;
    uint64_t executed = 0;
    for (;; executed++) {
        struct instruction next = program[at++];
        switch (next.operation) {
        case PUSH:
            *++top = next.operand;
            break;
        case LOAD:
            *++top = variables[next.operand];
            break;
        case STORE:
            variables[next.operand] = *top--;
            break;
        case ADD:
            top--;
            top[0] += top[1];
            break;
        case MULTIPLY:
            top--;
            top[0] *= top[1];
            break;
        case AND:
            top--;
            top[0] &= top[1];
            break;
        case SHIFT:
            top--;
            top[0] >>= top[1];
            break;
        case LESS:
            top--;
            top[0] = top[0] < top[1];
            break;
        case EQUAL:
            top--;
            top[0] = top[0] == top[1];
            break;
        case JUMP:
            at = next.operand;
            break;
        case JUMP_ZERO:
            if (!*top--)
                at = next.operand;
            break;
        case CALL:
            returns[depth++] = at;
            at = next.operand;
            break;
        case RETURN:
            at = returns[--depth];
            break;
        case STOP:
            return executed;
        }
    }
}

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1;
    begin();
    for (long turn = 0; turn < scale; turn++) {
        int64_t variables[VARIABLES] = {0};
        variables[START] = 1 + turn % 64;
        variables[LIMIT] = variables[START] + 3000;
        uint64_t executed = run(code, variables);
        sum = mix(mix(mix(sum, executed), (uint64_t)variables[TOTAL]), (uint64_t)variables[LONGEST]);
    }
    return end(sum);
}
