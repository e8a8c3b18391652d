/* Send SCALE MiB by TCP to the machine named by the second argument, or without one receive as much, on port 5001. */
#include "bench.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK = 1 << 17 };
static uint64_t buffer[CHUNK / 8];

int main(int argc, char **argv) {
    long left = argument(argc, argv, 1) * (1 << 20);
    uint64_t sum = (uint64_t)left, on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(5001)};
    int stream = socket(AF_INET, SOCK_STREAM, 0);
    if (argc > 2) {
        inet_aton(argv[2], &address.sin_addr);
        for (int tries = 0; connect(stream, (struct sockaddr *)&address, sizeof address); tries++) {
            if (tries > 100)
                fail("connect");
            usleep(100000);
        }
        begin();
        for (ssize_t put; left > 0; left -= put)
            if ((put = write(stream, buffer, left < CHUNK ? (size_t)left : CHUNK)) <= 0)
                fail("write");
        shutdown(stream, SHUT_WR);
        if (read(stream, buffer, 1) != 0) /* until all has been received */
            fail("read");
    } else {
        int listener = stream;
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1))
            fail("listen");
        stream = accept(listener, NULL, NULL);
        begin();
        for (ssize_t got; left > 0; left -= got)
            if ((got = read(stream, buffer, CHUNK)) <= 0)
                fail("read");
        close(stream);
    }
    return end(sum);
}
