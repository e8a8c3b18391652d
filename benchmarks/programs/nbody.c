/* Eight bodies that attract each other, SCALE times 10000 steps of the leapfrog method; double precision. */
#include "bench.h"

#include <math.h>

enum { BODIES = 8 };

static struct body {
    double position[3], velocity[3], mass;
} bodies[BODIES];

static void set_up(void) {
    bodies[0].mass = 1000;
    for (int i = 1; i < BODIES; i++) { /* on nearly circular orbits, in turn along x and y */
        struct body *body = &bodies[i];
        double radius = 10.0 * i, speed = sqrt(bodies[0].mass / radius);
        body->mass = 0.25 / i;
        body->position[i & 1] = radius;
        body->position[2] = 0.125 * i;
        body->velocity[!(i & 1)] = i & 2 ? speed : -speed;
    }
}

static void step(double time) {
    for (int i = 0; i < BODIES; i++)
        for (int j = i + 1; j < BODIES; j++) {
            struct body *a = &bodies[i], *b = &bodies[j];
            double apart[3], square = 0.01;
            for (int k = 0; k < 3; k++) {
                apart[k] = b->position[k] - a->position[k];
                square += apart[k] * apart[k];
            }
            double pull = time / (square * sqrt(square));
            for (int k = 0; k < 3; k++) {
                a->velocity[k] += apart[k] * b->mass * pull;
                b->velocity[k] -= apart[k] * a->mass * pull;
            }
        }
    for (int i = 0; i < BODIES; i++)
        for (int k = 0; k < 3; k++)
            bodies[i].position[k] += time * bodies[i].velocity[k];
}

int main(int argc, char **argv) {
    long scale = argument(argc, argv, 1);
    uint64_t sum = 1;
    set_up();
    begin();
    for (long turn = 0; turn < scale; turn++) {
        for (int i = 0; i < 10000; i++)
            step(0.001);
        for (int i = 0; i < BODIES; i++)
            for (int k = 0; k < 3; k++)
                sum = mix_double(mix_double(sum, bodies[i].position[k]), bodies[i].velocity[k]);
    }
    return end(sum);
}
