"""The system calls that a Linux guest's programs make: a line for each, or counts."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from polyvisor.adl import Trap
from polyvisor.engine.hart import Hart
from polyvisor.engine.memory import BusError, Memory

from ..errors import VMError
from ..hooks import AddedHook, Event
from ..inspect import physical_pieces
from ..virtual_machine import VM

# Of RISC-V: the instructions ecall and sret, the context of supervisors, sstatus.SPP (Privileged Architecture, 10.1.1);
# the register with a result (RISC-V Linux ABI).
_ECALL_BYTES, _SRET = 4, bytes.fromhex("73002010")
_SUPERVISOR, _SPP, _RESULT = 1, 1 << 8, 10
# Linux returns from traps within so many bytes behind where it enters them (arch/riscv/kernel/entry.S). While a task is
# in user mode, sscratch is the kernel's pointer to it.
_TRAP_CODE = 4096

# Linux's numbers for newer architectures (asm-generic/unistd.h), and RISC-V's own: runs that begin with a number.
_RUNS = {
    0: (
        "io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr fsetxattr getxattr lgetxattr "
        "fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr getcwd lookup_dcookie "
        "eventfd2 epoll_create1 epoll_ctl epoll_pwait dup dup3 fcntl inotify_init1 inotify_add_watch "
        "inotify_rm_watch ioctl ioprio_set ioprio_get flock mknodat mkdirat unlinkat symlinkat linkat renameat "
        "umount2 mount pivot_root nfsservctl statfs fstatfs truncate ftruncate fallocate faccessat chdir fchdir "
        "chroot fchmod fchmodat fchownat fchown openat close vhangup pipe2 quotactl getdents64 lseek read write "
        "readv writev pread64 pwrite64 preadv pwritev sendfile pselect6 ppoll signalfd4 vmsplice splice tee "
        "readlinkat newfstatat fstat sync fsync fdatasync sync_file_range2 timerfd_create timerfd_settime "
        "timerfd_gettime utimensat acct capget capset personality exit exit_group waitid set_tid_address unshare "
        "futex set_robust_list get_robust_list nanosleep getitimer setitimer kexec_load init_module delete_module "
        "timer_create timer_gettime timer_getoverrun timer_settime timer_delete clock_settime clock_gettime "
        "clock_getres clock_nanosleep syslog ptrace sched_setparam sched_setscheduler sched_getscheduler "
        "sched_getparam sched_setaffinity sched_getaffinity sched_yield sched_get_priority_max "
        "sched_get_priority_min sched_rr_get_interval restart_syscall kill tkill tgkill sigaltstack rt_sigsuspend "
        "rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigreturn setpriority "
        "getpriority reboot setregid setgid setreuid setuid setresuid getresuid setresgid getresgid setfsuid "
        "setfsgid times setpgid getpgid getsid setsid getgroups setgroups uname sethostname setdomainname "
        "getrlimit setrlimit getrusage umask prctl getcpu gettimeofday settimeofday adjtimex getpid getppid "
        "getuid geteuid getgid getegid gettid sysinfo mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify "
        "mq_getsetattr msgget msgctl msgrcv msgsnd semget semctl semtimedop semop shmget shmctl shmat shmdt "
        "socket socketpair bind listen accept connect getsockname getpeername sendto recvfrom setsockopt "
        "getsockopt shutdown sendmsg recvmsg readahead brk munmap mremap add_key request_key keyctl clone execve "
        "mmap fadvise64 swapon swapoff mprotect msync mlock munlock mlockall munlockall mincore madvise "
        "remap_file_pages mbind get_mempolicy set_mempolicy migrate_pages move_pages rt_tgsigqueueinfo "
        "perf_event_open accept4 recvmmsg arch_specific_syscall"
    ),
    258: (
        "riscv_hwprobe riscv_flush_icache wait4 prlimit64 fanotify_init fanotify_mark name_to_handle_at "
        "open_by_handle_at clock_adjtime syncfs setns sendmmsg process_vm_readv process_vm_writev kcmp "
        "finit_module sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create bpf execveat "
        "userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx "
        "io_pgetevents rseq kexec_file_load"
    ),
    403: (
        "clock_gettime64 clock_settime64 clock_adjtime64 clock_getres_time64 clock_nanosleep_time64 "
        "timer_gettime64 timer_settime64 timerfd_gettime64 timerfd_settime64 utimensat_time64 pselect6_time64 "
        "ppoll_time64"
    ),
    416: (
        "io_pgetevents_time64 recvmmsg_time64 mq_timedsend_time64 mq_timedreceive_time64 semtimedop_time64 "
        "rt_sigtimedwait_time64 futex_time64 sched_rr_get_interval_time64 pidfd_send_signal io_uring_setup "
        "io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount fspick pidfd_open clone3 "
        "close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd "
        "landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret process_mrelease "
        "futex_waitv set_mempolicy_home_node"
    ),
}
NAMES = {first + n: name for first, names in _RUNS.items() for n, name in enumerate(names.split())}
# Arguments that are paths, or other texts, by the names of calls.
_TEXTS = {
    "openat": (1,), "openat2": (1,), "newfstatat": (1,), "faccessat": (1,), "faccessat2": (1,), "readlinkat": (1,),
    "unlinkat": (1,), "mkdirat": (1,), "execve": (0,), "execveat": (1,), "chdir": (0,), "chroot": (0,), "statx": (1,),
    "statfs": (0,), "mount": (0, 1, 2), "umount2": (0,), "symlinkat": (0, 2), "linkat": (1, 3), "renameat2": (1, 3),
    "fchmodat": (1,), "fchownat": (1,), "truncate": (0,), "mknodat": (1,), "utimensat": (1,), "memfd_create": (0,),
}
# How many arguments the other calls have, where that is not 6: what is not known shows all.
_COUNTS = {
    "read": 3, "write": 3, "readv": 3, "writev": 3, "close": 1, "lseek": 3, "dup": 1, "dup3": 3, "pipe2": 2, "ioctl": 3,
    "fcntl": 3, "getpid": 0, "getppid": 0, "getuid": 0, "geteuid": 0, "getgid": 0, "getegid": 0, "gettid": 0, "brk": 1,
    "munmap": 2, "mprotect": 3, "mmap": 6, "exit": 1, "exit_group": 1, "wait4": 4, "kill": 2, "umask": 1, "openat": 4,
    "newfstatat": 4, "faccessat": 3, "readlinkat": 4, "unlinkat": 3, "mkdirat": 3, "execve": 3, "chdir": 1, "statx": 5,
    "getdents64": 3, "fstat": 2, "uname": 1, "getcwd": 2, "rt_sigaction": 4, "rt_sigprocmask": 4, "rt_sigreturn": 0,
    "set_tid_address": 1, "set_robust_list": 2, "getrandom": 3, "prlimit64": 4, "clock_gettime": 2, "nanosleep": 2,
    "clock_nanosleep": 4, "sched_yield": 0, "setpgid": 2, "getpgid": 1, "setsid": 0, "sendfile": 4, "ppoll": 5,
    "futex": 6, "socket": 3, "bind": 3, "connect": 3, "accept4": 4, "sendto": 6, "recvfrom": 6, "sysinfo": 1,
    "clone": 5, "tgkill": 3,
}


# Calls after which the task does not go on behind its call: they never return, or only when they fail.
_ENDS = ("exit", "exit_group")
_GOES_ELSEWHERE = {"execve": "0", "execveat": "0", "rt_sigreturn": "?"}


@dataclass
class _Call:
    """A call that has not returned: its line so far, and where its task is to go on."""

    text: str
    after: int
    name: str


class SyscallTrace:
    """Writes a line for each system call to ``file``: the hart, the call, its arguments as they are at the call, and
    its result. The line is written when the call returns.

    Where the kernel returns to programs is found in its memory when the first program calls it, so the first calls of
    all have no results. A call that is still under way at the end is ``<unfinished ...>``; what a signal interrupts has
    the result ``?``.

    Without a file it only counts the calls. A text that is not in memory at that moment is shown as its address. As a
    context manager it stops at the end. Python is called for each, and each return from a trap, which takes some
    microseconds.
    """

    def __init__(self, vm: VM, file: TextIO | None = None) -> None:
        self.counts: Counter[str] = Counter()
        """How often each call was made, by name."""
        self._vm = vm
        self._file = file
        self._lock = threading.Lock()
        self._pending: dict[int, _Call] = {}
        self._entry = 0  # of the kernel whose returns are looked at
        self._searching = self._stopped = False
        self._returns: list[AddedHook] = []
        if file is not None and vm.running:
            self._find_returns()
        self.hook: AddedHook = vm.hooks.add(self._called, on="syscall")

    def stop(self) -> None:
        """Trace no more."""
        self.hook.remove()
        with self._lock:
            self._stopped = True
        self._forget_returns()
        with self._lock:
            for call in self._pending.values():
                self._write(f"{call.text} <unfinished ...>")
            self._pending.clear()

    def __enter__(self) -> SyscallTrace:
        return self

    def __exit__(self, *reason: object) -> None:
        self.stop()

    def _write(self, line: str) -> None:
        if self._file is not None:
            self._file.write(f"{line}\n")

    def _called(self, event: Event) -> None:
        name = NAMES.get(event.number, f"syscall_{event.number}")
        with self._lock:
            self.counts[name] += 1
            if self._file is None:
                return
            text = f"[{event.hart}] {name}({', '.join(_arguments(event, name))})"
            task = int(event.cpu.sscratch)
            before = self._pending.pop(task, None)
            if before is not None:
                self._write(f"{before.text} = ?")
            if int(event.cpu.stvec) != self._entry:
                self._write(text)
                if not self._searching and not self._stopped:
                    self._searching = True
                    # Not here, where the hart cannot stand still.
                    threading.Thread(target=self._find_returns, name="system calls", daemon=True).start()
            elif name in _ENDS:
                self._write(f"{text} = ?")
            else:
                self._pending[task] = _Call(text, int(event.cpu.pc) + _ECALL_BYTES, name)

    def _returned(self, event: Event) -> None:
        """A hart is about to execute sret."""
        cpu = event.cpu
        if int(cpu.mstatus) & _SPP:
            return  # to the kernel itself
        with self._lock:
            call = self._pending.pop(int(cpu.sscratch), None)
            if call is None:
                return
            if int(cpu.sepc) == call.after:
                self._write(f"{call.text} = {_result(int(cpu.x[_RESULT]))}")
            else:
                self._write(f"{call.text} = {_GOES_ELSEWHERE.get(call.name, '?')}")

    def _find_returns(self) -> None:
        """Look at the returns of the kernel that runs now."""
        self._forget_returns()
        try:
            with self._vm.paused():
                entry, places = _returns(self._vm.machine.board.harts, self._vm.machine.board.memory)
            found = [self._vm.hooks.add(self._returned, on="instruction", at=place) for place in places]
        except VMError:  # it has ended
            return
        with self._lock:
            self._returns = found
            if found:
                self._entry = entry
            self._searching = False
        if self._stopped:
            self._forget_returns()

    def _forget_returns(self) -> None:
        with self._lock:
            returns, self._returns = self._returns, []
        for each in returns:
            each.remove()


def _returns(harts: Sequence[Hart], memory: Memory) -> tuple[int, list[int]]:
    """Where the kernel enters traps, and where sret is behind that, if there is a kernel yet. All harts stand still."""
    for hart in harts:
        entry = int(hart.state.stvec)
        start = entry & ~3
        code = b""
        with contextlib.suppress(Trap, BusError):
            for piece in physical_pieces(hart, start, _TRAP_CODE, _SUPERVISOR):
                code += memory.read(*piece)
        places = [start + at for at in range(0, len(code) - 3, 2) if code[at : at + 4] == _SRET]
        if places:
            return entry, places
    return 0, []


def _result(value: int) -> str:
    signed = value - 2**64 if value >= 2**63 else value
    if -4096 < signed < 0:
        return f"-1 {errno.errorcode.get(-signed, -signed)}"
    return _number(value)


def _arguments(event: Event, name: str) -> list[str]:
    texts = _TEXTS.get(name, ())
    count = _COUNTS.get(name, 6)
    return [_shown(event, event.values[f"arg{n}"], n in texts) for n in range(count)]


def _shown(event: Event, value: int, text: bool) -> str:
    if text and value:
        try:
            found = event.text(value, 256)
        except LookupError:
            return f"{value:#x}"
        return repr(found) if len(found) < 256 else f"{found!r}..."
    return _number(value)


def _number(value: int) -> str:
    signed = value - 2**64 if value >= 2**63 else value
    if -4096 < signed < 4096:
        return str(signed)
    low = value & 0xFFFF_FFFF
    # AT_FDCWD and the like, passed as a C int.
    return str(low - 2**32) if value == low and low > 2**32 - 4096 else f"{value:#x}"
