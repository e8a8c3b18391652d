"""The system calls of a command, like strace, for everything that runs in the guest."""

import sys

import polyvisor
from polyvisor.vm.analysis.syscalls import SyscallTrace

with polyvisor.VM("debian") as vm:
    with SyscallTrace(vm, sys.stdout) as trace:
        vm.run(["cat", "/etc/passwd"], check=True)
    print(", ".join(f"{name}: {count}" for name, count in trace.counts.most_common(3)))
    print(f"openat: {trace.counts['openat'] > 0}")
