"""The agent: a program in the guest that runs commands and moves files for the host, without a network.

It is written in the description language and compiled for the guest's CPU, so it needs nothing of the guest but the
kernel: no library, no interpreter, no package. It serves :mod:`polyvisor.guest.protocol`; every connection has a
process of its own, which serves one request after the other. What the host asks for is done: the host owns the machine.
"""

from __future__ import annotations

from functools import cache

from polyvisor.adl import function, i64, u8, u16, u32, u64
from polyvisor.adl.host import peek, poke

from . import linux as os
from . import protocol as p
from .linux import call, call5, close, leave, read, read_all, spawn, write_all
from .program import Data, Platform, build

_DATA = Data()
_DEV_NULL = _DATA.text("/dev/null")
_PTMX = _DATA.text("/dev/ptmx")
_URANDOM = _DATA.text("/dev/urandom")
_EMPTY = _DATA.text("")
_NO_SOCKETS_TEXT = "polyvisor agent: this kernel has no virtio sockets (CONFIG_VIRTIO_VSOCKETS)\n"
_NO_SOCKETS = _DATA.text(_NO_SOCKETS_TEXT)

_ADDRESS = _DATA.space(16)
_PEER = _DATA.space(16)
_ACTION = _DATA.space(32)
_HEADER = _DATA.space(p.HEADER_SIZE)
_POLL = _DATA.space(8 * 8)
_PAIR = _DATA.space(8)
_SMALL = _DATA.space(64)
_FIXED = _DATA.space(16)
_CHILD = _DATA.space(32)
_TIME = _DATA.space(16)
_STACK = _DATA.space(4096)
_STAT = _DATA.space(p.HEADER_SIZE + os.STATX_SIZE)
_REQUEST = _DATA.space(p.MAX_REQUEST + 8)
_POINTERS = _DATA.space(8 * (p.MAX_STRINGS + 2))
_IN = _DATA.space(p.MAX_FRAME)
_OUT = _DATA.space(p.HEADER_SIZE + p.MAX_FRAME)

_NONE = 2**32 - 1
"""A descriptor that is not there, as poll(2) ignores it."""
# Kept while the agent runs: a descriptor of /dev/null, or `_NONE`; a bit for each signal that is ignored.
_NULL, _IGNORED = _FIXED, _FIXED + 8
# Of the child that is to run a program: its standard streams; where preparing it failed, or 0, and the error number;
# a descriptor of it; its status at the end.
_STREAMS, _FAILURE, _PROCESS, _STATUS = _CHILD, _CHILD + 12, _CHILD + 20, _CHILD + 24
_RETRY = 200_000_000
"""Nanoseconds between attempts to greet the host."""
# struct of RUN before its strings: offsets.
_FLAGS, _UID, _GID, _GROUPS, _ARGUMENTS, _ENVIRONMENT, _PATHS, _ROWS, _COLUMNS, _LISTS = range(0, 40, 4)


# Frames


@function(inline=False)
def send(connection: u64, kind: u32, numbers: u32, first: u32, second: u32, third: u32) -> i64:
    """Send a frame of up to three numbers."""
    poke(u32, u64(_SMALL), kind)
    poke(u32, u64(_SMALL + 4), numbers * 4)
    poke(u32, u64(_SMALL + 8), first)
    poke(u32, u64(_SMALL + 12), second)
    poke(u32, u64(_SMALL + 16), third)
    return write_all(connection, u64(_SMALL), u64(8) + u64(numbers) * 4)


@function(inline=False)
def receive(connection: u64, place: u64, room: u64) -> u32:
    """Receive a frame; gives its kind, 0 if there is none. Its length is in the header."""
    if not read_all(connection, u64(_HEADER), u64(p.HEADER_SIZE)):
        return u32(0)
    length = u64(peek(u32, u64(_HEADER + 4)))
    if length > room or not read_all(connection, place, length):
        return u32(0)
    return peek(u32, u64(_HEADER))


@function(inline=False)
def send_buffer(connection: u64, kind: u32, length: u64) -> i64:
    """Send what is in the output buffer as one frame."""
    poke(u32, u64(_OUT), kind)
    poke(u32, u64(_OUT + 4), u32(length))
    return write_all(connection, u64(_OUT), length + p.HEADER_SIZE)


@function(inline=False)
def give_up(connection: u64, stage: u32, error: i64) -> None:
    """Tell why no program was started, and end: what we need ourselves is missing."""
    send(connection, u32(p.FAILED), u32(3), stage, u32(u64(-error)), u32(0))
    leave(u64(1))


# Small things


@function(inline=False)
def set_signal(number: u64, handler: u64) -> None:
    """Ignore a signal, or let it do what it does by default."""
    poke(u64, u64(_ACTION), handler)
    call5(os.RT_SIGACTION, number, u64(_ACTION), u64(0), u64(8), u64(0))


@function(inline=False)
def is_ignored(number: u64) -> bool:
    """Whether a signal is ignored."""
    poke(u64, u64(_ACTION), u64(0))
    call5(os.RT_SIGACTION, number, u64(0), u64(_ACTION), u64(8), u64(0))
    return peek(u64, u64(_ACTION)) == os.SIG_IGN


@function(inline=False)
def find_ignored() -> None:
    """Note which signals are ignored, also by whoever started us: shells do that for what is in the background."""
    ignored = u64(0)
    number = u64(1)
    while number < os.SIGNALS:
        if is_ignored(number):
            ignored = ignored | (u64(1) << number)
        number = number + 1
    poke(u64, u64(_IGNORED), ignored)


@function(inline=False)
def set_poll(entry: u64, descriptor: u64, events: u32) -> None:
    """What to wait for."""
    poke(u32, u64(_POLL) + entry * 8, u32(descriptor))
    poke(u32, u64(_POLL) + entry * 8 + 4, events)


@function(inline=False)
def polled(entry: u64) -> u32:
    """What there is of what was waited for."""
    return u32(peek(u16, u64(_POLL) + entry * 8 + 6))


@function(inline=False)
def after_string(place: u64) -> u64:
    """The address behind the string at ``place`` and its NUL."""
    while peek(u8, place) != 0:
        place = place + 1
    return place + 1


@function(inline=False)
def point_to_strings(place: u64, strings: u64, count: u64) -> u64:
    """Fill ``place`` with pointers to ``count`` strings, and a null; gives the address behind the strings."""
    done = u64(0)
    while done < count:
        poke(u64, place + done * 8, strings)
        strings = after_string(strings)
        done = done + 1
    poke(u64, place + done * 8, u64(0))
    return strings


@function(inline=False)
def pipe(connection: u64) -> None:
    """Make a pipe; its ends are in `_PAIR`. Without one we end."""
    error = call(os.PIPE2, u64(_PAIR), u64(os.O_CLOEXEC), u64(0))
    if error < 0:
        give_up(connection, u32(p.AT_PROCESS), error)


@function
def reading_end() -> u64:
    """Of the newest pipe."""
    return u64(peek(u32, u64(_PAIR)))


@function
def writing_end() -> u64:
    """Of the newest pipe."""
    return u64(peek(u32, u64(_PAIR + 4)))


# Running a program


@function(inline=False)
def fail(stage: u32, error: i64) -> None:
    """In the child: tell the parent what went wrong, and end."""
    poke(u32, u64(_FAILURE), stage)
    poke(u32, u64(_FAILURE + 4), u32(u64(-error)))
    leave(u64(127))


@function(inline=False)
def become() -> None:
    """In the child: turn into the program that was asked for. All memory is the parent's, which waits."""
    flags = peek(u32, u64(_REQUEST + _FLAGS))
    stdin = u64(peek(u32, u64(_STREAMS)))
    stdout = u64(peek(u32, u64(_STREAMS + 4)))
    stderr = u64(peek(u32, u64(_STREAMS + 8)))
    call(os.SETSID, u64(0), u64(0), u64(0))
    if flags & p.TTY != 0:
        call(os.IOCTL, stdin, u64(os.TIOCSCTTY), u64(0))
    call(os.DUP3, stdin, u64(0), u64(0))
    call(os.DUP3, stdout, u64(1), u64(0))
    call(os.DUP3, stderr, u64(2), u64(0))
    number = u64(1)
    while number < os.SIGNALS:
        if (peek(u64, u64(_IGNORED)) >> number) & 1 != 0:
            set_signal(number, u64(os.SIG_DFL))
        number = number + 1

    groups = u64(peek(u32, u64(_REQUEST + _GROUPS)))
    if flags & p.AS_AGENT == 0:
        error = call(os.SETGROUPS, groups, u64(_REQUEST + _LISTS), u64(0))
        if error >= 0:
            error = call(os.SETGID, u64(peek(u32, u64(_REQUEST + _GID))), u64(0), u64(0))
        if error >= 0:
            error = call(os.SETUID, u64(peek(u32, u64(_REQUEST + _UID))), u64(0), u64(0))
        if error < 0:
            fail(u32(p.AT_USER), error)

    directory = u64(_REQUEST + _LISTS) + groups * 4
    if peek(u8, directory) != 0:
        error = call(os.CHDIR, directory, u64(0), u64(0))
        if error < 0:
            fail(u32(p.AT_DIRECTORY), error)
    path = after_string(directory)
    strings = path
    left = u64(peek(u32, u64(_REQUEST + _PATHS)))
    skipped = u64(0)
    while skipped < left:
        strings = after_string(strings)
        skipped = skipped + 1
    arguments = u64(peek(u32, u64(_REQUEST + _ARGUMENTS)))
    environment = u64(_POINTERS) + (arguments + 1) * 8
    strings = point_to_strings(u64(_POINTERS), strings, arguments)
    point_to_strings(environment, strings, u64(peek(u32, u64(_REQUEST + _ENVIRONMENT))))
    worst = i64(0)
    while left > 0:
        error = call(os.EXECVE, path, u64(_POINTERS), environment)
        # As shells do: what is there and may not be executed is worth more than that it is not elsewhere.
        if worst != -os.EACCES:
            worst = error
        path = after_string(path)
        left = left - 1
    fail(u32(p.AT_PROGRAM), worst)


@function(inline=False)
def forward(connection: u64, source: u64, kind: u32, child: u64) -> u64:
    """Send what can be read from the program; gives the descriptor, or `_NONE` where it has ended."""
    got = read(source, u64(_OUT + p.HEADER_SIZE), u64(p.MAX_FRAME))
    if got > 0:
        if send_buffer(connection, kind, u64(got)) < 0:
            abandon(child)
        return source
    if got == -os.EAGAIN:
        return source
    close(source)
    return u64(_NONE)


@function(inline=False)
def drain(connection: u64, source: u64, kind: u32, child: u64) -> u64:
    """The same, until there is nothing more now."""
    if source == _NONE:
        return source
    while True:
        got = read(source, u64(_OUT + p.HEADER_SIZE), u64(p.MAX_FRAME))
        if got == -os.EAGAIN:
            return source
        if got <= 0:
            close(source)
            return u64(_NONE)
        if send_buffer(connection, kind, u64(got)) < 0:
            abandon(child)
    return source


@function(inline=False)
def abandon(child: u64) -> None:
    """The host has gone: so does the program, unless it was to stay."""
    if peek(u32, u64(_REQUEST + _FLAGS)) & p.DETACHED == 0:
        call(os.KILL, u64(0) - child, u64(os.SIGKILL), u64(0))
    leave(u64(1))


@function(inline=False)
def swallow(stdout: u64, stderr: u64) -> None:
    """What the program left running may go on printing, to nobody."""
    while stdout != _NONE or stderr != _NONE:
        set_poll(u64(0), stdout, u32(os.POLLIN))
        set_poll(u64(1), stderr, u32(os.POLLIN))
        call5(os.PPOLL, u64(_POLL), u64(2), u64(0), u64(0), u64(0))
        if polled(u64(0)) != 0:
            got = read(stdout, u64(_OUT), u64(p.MAX_FRAME))
            if got <= 0 and got != -os.EAGAIN:
                close(stdout)
                stdout = u64(_NONE)
        if polled(u64(1)) != 0:
            got = read(stderr, u64(_OUT), u64(p.MAX_FRAME))
            if got <= 0 and got != -os.EAGAIN:
                close(stderr)
                stderr = u64(_NONE)


@function(inline=False)
def attend(connection: u64, child: u64, stdin: u64, stdout: u64, stderr: u64) -> None:
    """Carry what goes in and comes out of a program until it ends; then say how."""
    tty = peek(u32, u64(_REQUEST + _FLAGS)) & p.TTY != 0
    process = u64(peek(u32, u64(_PROCESS)))
    begin = u64(0)
    end = u64(0)  # of the input in `_IN` that the program has not taken
    running = True
    while running:
        # The host's next frame is read when the program has taken the last.
        set_poll(u64(0), connection, u32(os.POLLRDHUP) | (u32(os.POLLIN) if begin == end else u32(0)))
        set_poll(u64(1), stdin if begin != end else u64(_NONE), u32(os.POLLOUT))
        set_poll(u64(2), stdout, u32(os.POLLIN))
        set_poll(u64(3), stderr, u32(os.POLLIN))
        set_poll(u64(4), process, u32(os.POLLIN))
        call5(os.PPOLL, u64(_POLL), u64(5), u64(0), u64(0), u64(0))
        if polled(u64(2)) != 0:
            stdout = forward(connection, stdout, u32(p.STDOUT), child)
        if polled(u64(3)) != 0:
            stderr = forward(connection, stderr, u32(p.STDERR), child)
        if polled(u64(1)) != 0:
            put = call(os.WRITE, stdin, u64(_IN) + begin, end - begin)
            if put > 0:
                begin = begin + u64(put)
            elif put != -os.EAGAIN and put != -os.EINTR:
                close(stdin)
                stdin = u64(_NONE)
                begin = end
        if polled(u64(0)) & (os.POLLHUP | os.POLLERR | os.POLLRDHUP) != 0:
            abandon(child)
        elif polled(u64(0)) != 0:
            kind = receive(connection, u64(_IN), u64(p.MAX_FRAME))
            if kind == 0:
                abandon(child)
            elif kind == p.STDIN and stdin != _NONE:
                begin = u64(0)
                end = u64(peek(u32, u64(_HEADER + 4)))
            elif kind == p.STDIN_END and stdin != _NONE and not tty:
                close(stdin)
                stdin = u64(_NONE)
            elif kind == p.RESIZE and tty:
                resize(stdout, u64(_IN))
        if polled(u64(4)) != 0:
            running = call5(os.WAIT4, child, u64(_STATUS), u64(os.WNOHANG), u64(0), u64(0)) != i64(child)
    stdout = drain(connection, stdout, u32(p.STDOUT), child)
    stderr = drain(connection, stderr, u32(p.STDERR), child)
    close(process)
    if stdin != _NONE:
        close(stdin)
    status = peek(u32, u64(_STATUS))
    if stdout == _NONE and stderr == _NONE:
        if send(connection, u32(p.EXIT), u32(2), status, u32(1), u32(0)) < 0:
            leave(u64(1))
    else:
        send(connection, u32(p.EXIT), u32(2), status, u32(0), u32(0))
        close(connection)
        swallow(stdout, stderr)
        leave(u64(0))


@function(inline=False)
def resize(terminal: u64, numbers: u64) -> None:
    """Give a terminal the rows and columns at ``numbers``; struct winsize has two more, of pixels."""
    poke(u16, u64(_SMALL), u16(peek(u32, numbers)))
    poke(u16, u64(_SMALL + 2), u16(peek(u32, numbers + 4)))
    poke(u32, u64(_SMALL + 4), u32(0))
    call(os.IOCTL, terminal, u64(os.TIOCSWINSZ), u64(_SMALL))


@function(inline=False)
def null() -> u64:
    """A descriptor of /dev/null, which stays open. There may have been none when we started."""
    if peek(u32, u64(_NULL)) == _NONE:
        opened = call5(os.OPENAT, u64(os.AT_FDCWD), u64(_DEV_NULL), u64(os.O_RDONLY | os.O_CLOEXEC), u64(0), u64(0))
        if opened >= 0:
            poke(u32, u64(_NULL), u32(u64(opened)))
    return u64(peek(u32, u64(_NULL)))


@function(inline=False)
def do_not_block(descriptor: u64) -> None:
    """Let nobody who reads or writes it wait."""
    if descriptor != _NONE:
        call(os.FCNTL, descriptor, u64(os.F_SETFL), u64(os.O_NONBLOCK))


@function(inline=False)
def run(connection: u64) -> None:
    """Serve RUN."""
    flags = peek(u32, u64(_REQUEST + _FLAGS))
    tty = flags & p.TTY != 0
    strings = u64(peek(u32, u64(_REQUEST + _ARGUMENTS))) + u64(peek(u32, u64(_REQUEST + _ENVIRONMENT)))
    if strings > p.MAX_STRINGS:
        leave(u64(1))
    stdin = u64(0)
    stdout = u64(0)
    stderr = u64(0)
    input = u64(0)
    output = u64(0)
    errors = u64(0)
    if tty:
        master = call5(os.OPENAT, u64(os.AT_FDCWD), u64(_PTMX), u64(os.O_RDWR | os.O_CLOEXEC), u64(0), u64(0))
        if master < 0:
            give_up(connection, u32(p.AT_TERMINAL), master)
        poke(u32, u64(_SMALL), u32(0))
        call(os.IOCTL, u64(master), u64(os.TIOCSPTLCK), u64(_SMALL))
        peer = call(os.IOCTL, u64(master), u64(os.TIOCGPTPEER), u64(os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        if peer < 0:
            give_up(connection, u32(p.AT_TERMINAL), peer)
        stdin = u64(peer)
        stdout = stdin
        stderr = stdin
        # Two descriptors, so that each can be closed by itself.
        input = u64(call(os.FCNTL, u64(master), u64(0), u64(0)))
        output = u64(master)
        errors = u64(_NONE)
        resize(output, u64(_REQUEST + _ROWS))
    else:
        if flags & p.NO_INPUT != 0:
            stdin = null()
            input = u64(_NONE)
        else:
            pipe(connection)
            stdin = reading_end()
            input = writing_end()
        pipe(connection)
        output = reading_end()
        stdout = writing_end()
        pipe(connection)
        errors = reading_end()
        stderr = writing_end()
    poke(u32, u64(_STREAMS), u32(stdin))
    poke(u32, u64(_STREAMS + 4), u32(stdout))
    poke(u32, u64(_STREAMS + 8), u32(stderr))
    poke(u32, u64(_FAILURE), u32(0))
    child = spawn(u64(_STACK + 4096), u64(_PROCESS))
    if child < 0:
        give_up(connection, u32(p.AT_PROCESS), child)
    if flags & p.NO_INPUT == 0 or tty:
        close(stdin)
    if not tty:
        close(stdout)
        close(stderr)
    if peek(u32, u64(_FAILURE)) != 0:
        close(input)
        close(output)
        close(errors)
        close(u64(peek(u32, u64(_PROCESS))))
        call5(os.WAIT4, u64(child), u64(_STATUS), u64(0), u64(0), u64(0))
        send(connection, u32(p.FAILED), u32(3), peek(u32, u64(_FAILURE)), peek(u32, u64(_FAILURE + 4)), u32(1))
    else:
        do_not_block(input)
        do_not_block(output)
        do_not_block(errors)
        if flags & p.QUIET == 0 and send(connection, u32(p.STARTED), u32(1), u32(u64(child)), u32(0), u32(0)) < 0:
            abandon(u64(child))
        attend(connection, u64(child), input, output, errors)


# Files


@function(inline=False)
def done(connection: u64, result: i64) -> None:
    """Tell how it went."""
    error = u32(0)
    if result < 0:
        error = u32(u64(-result))
    send(connection, u32(p.DONE), u32(2), error, u32(1), u32(0))


@function(inline=False)
def refuse(connection: u64, result: i64) -> None:
    """Tell what went wrong, and end: so that the host sends no more of a file."""
    send(connection, u32(p.DONE), u32(2), u32(u64(-result)), u32(0), u32(0))
    close(connection)
    leave(u64(0))


@function(inline=False)
def status(connection: u64, directory: u64, path: u64, flags: u64) -> i64:
    """Send STAT; or give the error."""
    result = call5(os.STATX, directory, path, flags, u64(os.STATX_BASIC_STATS), u64(_STAT + p.HEADER_SIZE))
    if result >= 0:
        poke(u32, u64(_STAT), u32(p.STAT))
        poke(u32, u64(_STAT + 4), u32(os.STATX_SIZE))
        if write_all(connection, u64(_STAT), u64(p.HEADER_SIZE + os.STATX_SIZE)) < 0:
            leave(u64(1))
    return result


@function(inline=False)
def read_file(connection: u64) -> None:
    """Serve READ_FILE."""
    # A FIFO that nobody writes to must not hold us up while it is opened.
    how = u64(os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    file = call5(os.OPENAT, u64(os.AT_FDCWD), u64(_REQUEST), how, u64(0), u64(0))
    got = file
    if file >= 0:
        call(os.FCNTL, u64(file), u64(os.F_SETFL), u64(0))
        got = status(connection, u64(file), u64(_EMPTY), u64(os.AT_EMPTY_PATH))
        if got >= 0:
            got = read(u64(file), u64(_OUT + p.HEADER_SIZE), u64(p.MAX_FRAME))
        while got > 0:
            if send_buffer(connection, u32(p.STDOUT), u64(got)) < 0:
                leave(u64(1))
            got = read(u64(file), u64(_OUT + p.HEADER_SIZE), u64(p.MAX_FRAME))
        close(u64(file))
    done(connection, got)


@function(inline=False)
def write_file(connection: u64) -> None:
    """Serve WRITE_FILE."""
    mode = u64(peek(u32, u64(_REQUEST)))
    flags = peek(u32, u64(_REQUEST + 4))
    how = u64(os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    how = how | (u64(os.O_APPEND) if flags & p.APPEND != 0 else u64(os.O_TRUNC))
    if flags & p.EXCLUSIVE != 0:
        how = how | os.O_EXCL
    file = call5(os.OPENAT, u64(os.AT_FDCWD), u64(_REQUEST + 8), how, mode, u64(0))
    if file < 0:
        refuse(connection, file)
    if flags & p.SET_MODE != 0:
        result = call(os.FCHMOD, u64(file), mode, u64(0))
        if result < 0:
            refuse(connection, result)
    kind = receive(connection, u64(_IN), u64(p.MAX_FRAME))
    while kind == p.STDIN:
        result = write_all(u64(file), u64(_IN), u64(peek(u32, u64(_HEADER + 4))))
        if result < 0:
            refuse(connection, result)
        kind = receive(connection, u64(_IN), u64(p.MAX_FRAME))
    if kind != p.STDIN_END:
        leave(u64(1))
    # Some file systems tell only now that there is no room.
    done(connection, call(os.CLOSE, u64(file), u64(0), u64(0)))


@function(inline=False)
def reseed(connection: u64) -> None:
    """Serve RESEED."""
    how = u64(os.O_RDWR | os.O_CLOEXEC)
    source = call5(os.OPENAT, u64(os.AT_FDCWD), u64(_URANDOM), how, u64(0), u64(0))
    result = source
    if source >= 0:
        result = call(os.IOCTL, u64(source), u64(os.RNDADDENTROPY), u64(_REQUEST))
        if result >= 0:
            result = call(os.IOCTL, u64(source), u64(os.RNDRESEEDCRNG), u64(0))
        close(u64(source))
    done(connection, result)


# The program


@function(inline=False)
def serve(connection: u64) -> None:
    """Serve the requests of one connection, and end with it."""
    set_signal(u64(os.SIGCHLD), u64(os.SIG_DFL))
    kind = receive(connection, u64(_REQUEST), u64(p.MAX_REQUEST))
    while kind != 0:
        poke(u64, u64(_REQUEST) + u64(peek(u32, u64(_HEADER + 4))), u64(0))
        if kind == p.RUN:
            run(connection)
        elif kind == p.READ_FILE:
            read_file(connection)
        elif kind == p.WRITE_FILE:
            write_file(connection)
        elif kind == p.KILL:
            group = u64(0) - u64(peek(u32, u64(_REQUEST)))
            done(connection, call(os.KILL, group, u64(peek(u32, u64(_REQUEST + 4))), u64(0)))
        elif kind == p.STATUS:
            result = status(connection, u64(os.AT_FDCWD), u64(_REQUEST), u64(0))
            if result < 0:
                done(connection, result)
        elif kind == p.RESEED:
            reseed(connection)
        # Input for a program that has ended in the meantime is of no use to anybody.
        elif kind != p.STDIN and kind != p.STDIN_END and kind != p.RESIZE:
            leave(u64(1))
        kind = receive(connection, u64(_REQUEST), u64(p.MAX_REQUEST))
    leave(u64(0))


@function(inline=False)
def set_address(cid: u32) -> None:
    """A socket address of our port."""
    poke(u32, u64(_ADDRESS), u32(os.AF_VSOCK))
    poke(u32, u64(_ADDRESS + 4), u32(p.PORT))
    poke(u32, u64(_ADDRESS + 8), cid)


@function(inline=False)
def greet() -> u64:
    """Tell the host that we listen; gives the connection, or `_NONE` if it does not."""
    host = call(os.SOCKET, u64(os.AF_VSOCK), u64(os.SOCK_STREAM | os.SOCK_CLOEXEC), u64(0))
    if host < 0:
        return u64(_NONE)
    set_address(u32(os.CID_HOST))
    if call(os.CONNECT, u64(host), u64(_ADDRESS), u64(16)) < 0 or (
        send(u64(host), u32(p.HELLO), u32(1), u32(p.VERSION), u32(0), u32(0)) < 0
    ):
        close(u64(host))
        return u64(_NONE)
    return u64(host)


@function(inline=False)
def main(stack: u64) -> None:
    """Listen, and serve whoever connects, for ever; a child of `spawn` begins here too."""
    if stack == 0:
        become()
    # The standard streams are taken, so that no pipe gets their numbers.
    opened = i64(0)
    while opened >= 0 and opened < 3:
        opened = call5(os.OPENAT, u64(os.AT_FDCWD), u64(_DEV_NULL), u64(os.O_RDWR | os.O_CLOEXEC), u64(0), u64(0))
    if opened >= 3:
        close(u64(opened))
    poke(u32, u64(_NULL), u32(_NONE))
    null()
    find_ignored()
    poke(u64, u64(_IGNORED), peek(u64, u64(_IGNORED)) | (1 << os.SIGPIPE))
    set_signal(u64(os.SIGPIPE), u64(os.SIG_IGN))
    set_signal(u64(os.SIGCHLD), u64(os.SIG_IGN))  # nobody waits for those that serve
    listener = call(os.SOCKET, u64(os.AF_VSOCK), u64(os.SOCK_STREAM | os.SOCK_CLOEXEC), u64(0))
    set_address(u32(os.CID_ANY))
    if listener >= 0 and call(os.BIND, u64(listener), u64(_ADDRESS), u64(16)) < 0:
        listener = i64(-1)
    if listener < 0 or call(os.LISTEN, u64(listener), u64(128), u64(0)) < 0:
        write_all(u64(2), u64(_NO_SOCKETS), u64(len(_NO_SOCKETS_TEXT)))
        leave(u64(1))
    host = greet()
    while True:
        set_poll(u64(0), u64(listener), u32(os.POLLIN))
        set_poll(u64(1), host, u32(os.POLLIN))
        poke(u64, u64(_TIME), u64(0))
        poke(u64, u64(_TIME + 8), u64(_RETRY))
        wait = u64(_TIME) if host == _NONE else u64(0)
        call5(os.PPOLL, u64(_POLL), u64(2), wait, u64(0), u64(0))
        if host != _NONE and polled(u64(1)) != 0:
            # The host began anew: it was restored, or moved.
            close(host)
            host = u64(_NONE)
        if host == _NONE:
            host = greet()
        if polled(u64(0)) != 0:
            poke(u64, u64(_SMALL), u64(16))
            connection = call5(os.ACCEPT4, u64(listener), u64(_PEER), u64(_SMALL), u64(os.SOCK_CLOEXEC), u64(0))
            if connection >= 0:
                # A program of the guest that reaches us, by the loopback of its kernel, must not command us.
                if peek(u32, u64(_PEER + 8)) == os.CID_HOST:
                    child = call5(os.CLONE, u64(os.SIGCHLD), u64(0), u64(0), u64(0), u64(0))
                    if child == 0:
                        close(u64(listener))
                        close(host)
                        serve(u64(connection))
                close(u64(connection))


@cache
def agent(platform: Platform) -> bytes:
    """The agent's ELF file for a guest's CPU."""
    return build(main, _DATA, platform)
