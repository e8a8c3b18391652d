"""What host and agent say to each other, on stream sockets of a virtio socket device.

The agent listens on :data:`PORT`, and opens one connection to the same port of the host when it is ready, on which it
sends :data:`HELLO`. Requests are made on connections of the host's, each of which serves one after the other. All that
is sent are *frames*: a header of two little-endian 32-bit numbers, kind and length, and that many bytes.

=========  ========================================================================================================
RUN        flags, uid, gid, number of groups, of arguments, of environment strings, of paths to try; rows, columns;
           the groups; then strings ended by NUL: the working directory (empty: the agent's), paths, arguments,
           environment. Answered by STARTED or FAILED; then STDOUT and STDERR, and EXIT at the end.
READ_FILE  a path. Answered by STAT, STDOUT..., DONE; or by DONE with an error.
WRITE_FILE mode, flags, a path. Then STDIN..., STDIN_END from the host. Answered by DONE.
KILL       a process and a signal: sent to its process group. Answered by DONE.
STATUS     a path. Answered by STAT, or by DONE with an error.
RESEED     a struct rand_pool_info (random(4)): bytes that the kernel's random numbers depend on at once. Answered by
           DONE.
=========  ========================================================================================================

STARTED has the process. The last answers to a request are EXIT (a status as wait(2) has it), FAILED (where, and an
error number), DONE (an error number or 0), and STAT to STATUS. The last number of the first three is 1 if the
connection takes another request, 0 if the agent ends it; STAT leaves it open. Between requests STDIN, STDIN_END and
RESIZE are ignored: the host may have sent them before it knew of the end.

All numbers in frames have 32 bits, little-endian.
"""

from __future__ import annotations

VERSION = 3
PORT = 5370
HEADER_SIZE = 8
MAX_FRAME = 64 << 10
"""The longest payload of any frame but a request, in bytes."""
MAX_REQUEST = 256 << 10
"""The longest payload of a request: Linux's own limit on arguments is of that order."""
MAX_STRINGS = 16384
"""The most arguments and environment strings of a request together."""

MAX_PATH = 4096
"""The longest path, its NUL included: Linux's own limit."""

# Requests
RUN, READ_FILE, WRITE_FILE, KILL, STATUS, RESEED = 1, 2, 3, 4, 5, 6
# From the host, later
STDIN, STDIN_END, RESIZE = 16, 17, 18
# From the agent
HELLO, STARTED, FAILED, STDOUT, STDERR, EXIT, STAT, DONE = 32, 33, 34, 35, 36, 37, 38, 39

# Flags of RUN: on a terminal of its own; as the agent's own user; not killed when the connection breaks; without input,
# which is /dev/null then; without STARTED.
TTY, AS_AGENT, DETACHED, NO_INPUT, QUIET = 1, 2, 4, 8, 16
# Flags of WRITE_FILE: at the end of the file; only if there is none; give it exactly this mode.
APPEND, EXCLUSIVE, SET_MODE = 1, 2, 4

# Where starting a program failed, as FAILED says before the error number.
AT_TERMINAL, AT_PROCESS, AT_DIRECTORY, AT_USER, AT_PROGRAM = range(1, 6)
