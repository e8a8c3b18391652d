"""The Linux system calls that guest programs use, for kernels with the generic numbers (riscv64, arm64, loongarch64).

Numbers are those of the kernel's include/uapi/asm-generic/unistd.h; results below zero are -errno.
"""

from __future__ import annotations

from polyvisor.adl import function, i64, u64
from polyvisor.adl.host import host_call

# System calls
DUP3, FCNTL, IOCTL, CHDIR, FCHMOD, OPENAT, CLOSE, PIPE2, READ, WRITE, PPOLL, EXIT = (
    *(24, 25, 29, 49, 52, 56, 57, 59, 63, 64, 73, 93),
)
KILL, RT_SIGACTION, SETGID, SETUID, SETSID, SETGROUPS = 129, 134, 144, 146, 157, 159
SOCKET, BIND, LISTEN, CONNECT, CLONE, EXECVE, ACCEPT4, WAIT4, STATX = (
    *(198, 200, 201, 203, 220, 221, 242, 260, 291),
)

# Errors
EINTR, EAGAIN, EACCES = 4, 11, 13

# Files
AT_FDCWD = 2**64 - 100
AT_EMPTY_PATH, STATX_BASIC_STATS, STATX_SIZE = 0x1000, 0x7FF, 256
O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC, O_APPEND, O_NONBLOCK, O_CLOEXEC = (
    *(0, 1, 2, 0o100, 0o200, 0o400, 0o1000, 0o2000, 0o4000, 0o2000000),
)
F_SETFL = 4
TIOCSCTTY, TIOCSWINSZ, TIOCSPTLCK, TIOCGPTPEER = 0x540E, 0x5414, 0x40045431, 0x5441

# The kernel's random numbers, random(4): add entropy, and make the next ones of it
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207

# Waiting; struct pollfd is int fd, short events, short revents
POLLIN, POLLOUT, POLLERR, POLLHUP, POLLRDHUP = 1, 4, 8, 16, 0x2000
WNOHANG = 1

# Flags of clone(2): memory shared; a descriptor of the process; the parent stands still until the child runs a program
CLONE_VM, CLONE_PIDFD, CLONE_VFORK = 0x100, 0x1000, 0x4000

# Signals
SIG_DFL, SIG_IGN = 0, 1
SIGKILL, SIGPIPE, SIGCHLD = 9, 13, 17
SIGNALS = 32  # of which the first is 1; real-time signals follow

# Sockets; struct sockaddr_vm is u16 family, u16 zero, u32 port, u32 cid, and zeroes up to 16 bytes
AF_VSOCK, SOCK_STREAM, SOCK_CLOEXEC = 40, 1, 0o2000000
CID_ANY, CID_HOST = 2**32 - 1, 2


@function
def system(number, a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> u64:
    """System call ``number`` with six arguments; gives what the kernel returns (errors as small negative numbers)."""
    return host_call(None, "system", u64(number), a, b, c, d, e, f)


@function
def call(number, a: u64, b: u64, c: u64) -> i64:
    """A system call of up to three arguments."""
    return i64(system(number, a, b, c, u64(0), u64(0), u64(0)))


@function
def call5(number, a: u64, b: u64, c: u64, d: u64, e: u64) -> i64:
    """A system call of up to five arguments."""
    return i64(system(number, a, b, c, d, e, u64(0)))


@function(inline=False)
def spawn(stack: u64, descriptor: u64) -> i64:
    """Make a child for another program, and stand still until it runs one or ends; gives its number, or an error.

    The child shares this memory, so it must only prepare and call execve(2): it begins in ``main(0)``, and ``stack`` is
    the end of a stack of its own. A descriptor of the process is put at ``descriptor`` (u32).
    """
    flags = u64(CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD)
    return i64(host_call(None, "spawn", u64(CLONE), flags, stack, descriptor))


@function(inline=False)
def leave(status: u64) -> None:
    """End this process."""
    call(EXIT, status, u64(0), u64(0))


@function(inline=False)
def close(descriptor: u64) -> None:
    """Close a descriptor."""
    call(CLOSE, descriptor, u64(0), u64(0))


@function(inline=False)
def read(descriptor: u64, place: u64, count: u64) -> i64:
    """Read once, whatever signals come."""
    got = call(READ, descriptor, place, count)
    while got == -EINTR:
        got = call(READ, descriptor, place, count)
    return got


@function(inline=False)
def read_all(descriptor: u64, place: u64, count: u64) -> bool:
    """Read ``count`` bytes; gives whether they came."""
    done = u64(0)
    while done < count:
        got = read(descriptor, place + done, count - done)
        if got <= 0:
            return False
        done = done + u64(got)
    return True


@function(inline=False)
def write_all(descriptor: u64, place: u64, count: u64) -> i64:
    """Write ``count`` bytes to what blocks; gives 0, or an error."""
    done = u64(0)
    while done < count:
        put = call(WRITE, descriptor, place + done, count - done)
        if put < 0 and put != -EINTR:
            return put
        if put > 0:
            done = done + u64(put)
    return i64(0)
