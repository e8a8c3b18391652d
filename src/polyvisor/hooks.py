"""Hooks: functions of yours that become part of the code that executes the guest.

>>> from polyvisor import hooks
>>> class Writes(hooks.State):
...     total = hooks.Field(hooks.u64)
>>> @hooks.on_write
... def count(hook):
...     hook.total += 1
>>> with vm.hooks.add(count, Writes) as writes:       # doctest: +SKIP
...     vm.run("ls -R /")
...     print(writes.total)
"""

from polyvisor.adl import (
    Field,
    Registers,
    bit,
    bits,
    clz,
    ctz,
    function,
    i8,
    i16,
    i32,
    i64,
    popcount,
    u8,
    u16,
    u32,
    u64,
)
from polyvisor.engine.hooks.declare import (
    Hook,
    Maximum,
    Minimum,
    Ring,
    State,
    on_block,
    on_csr_write,
    on_instruction,
    on_read,
    on_syscall,
    on_trap,
    on_write,
)
from polyvisor.engine.hooks.states import HookError

__all__ = [
    "Field", "Hook", "HookError", "Maximum", "Minimum", "Registers", "Ring", "State", "bit", "bits", "clz", "ctz",
    "function", "i8", "i16", "i32", "i64", "on_block", "on_csr_write", "on_instruction", "on_read", "on_syscall",
    "on_trap", "on_write", "popcount", "u8", "u16", "u32", "u64",
]
