"""What compiled code depends on besides its sources: the host's CPU and the compiler, told without loading LLVM."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from .arena import CodeArena

# void cpuid(uint32_t out[4], uint32_t leaf, uint32_t subleaf), as the System V ABI for x86-64 passes arguments:
#   mov r8, rdi; mov r9, rbx; mov eax, esi; mov ecx, edx; cpuid
#   mov [r8], eax; mov [r8+4], ebx; mov [r8+8], ecx; mov [r8+12], edx; mov rbx, r9; ret
_CPUID = bytes.fromhex("4989f8 4989d9 89f0 89d1 0fa2 418900 41895804 41894808 4189500c 4c89cb c3")
# void xgetbv(uint32_t out[4]): mov r8, rdi; xor ecx, ecx; xgetbv; mov [r8], eax; mov [r8+4], edx; ret
_XGETBV = bytes.fromhex("4989f8 31c9 0f01d0 418900 41895004 c3")
# Leaves with features and the model (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E), and which of eax, ebx,
# ecx and edx count: others hold numbers of one core, or sizes that change with what the kernel has switched on.
_LEAVES = (
    (0x0, 0, "abcd"), (0x1, 0, "acd"), (0x7, 0, "bcd"), (0x7, 1, "abcd"), (0xD, 1, "a"), (0x14, 0, "b"), (0x19, 0, "b"),
    (0x1E, 1, "a"), (0x24, 0, "b"), (0x29, 0, "b"), (0x80000001, 0, "cd"), (0x80000008, 0, "b"),
)
_OSXSAVE = 1 << 27


def _x86_64() -> bytes:
    """The answers of CPUID that a compiler makes its choice by, and what register state the kernel has switched on."""
    arena = CodeArena(4096)
    try:
        ask = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)(arena.add_code(_CPUID))
        enabled = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(arena.add_code(_XGETBV))
        out = (ctypes.c_uint32 * 4)()
        found = []
        highest = {0: 0, 0x80000000: 0}
        for first in highest:
            ask(ctypes.addressof(out), first, 0)
            highest[first] = out[0]
        for leaf, subleaf, registers in _LEAVES:
            answer = [0, 0, 0, 0]
            if leaf <= highest[leaf & 0x80000000]:
                ask(ctypes.addressof(out), leaf, subleaf)
                answer = list(out)
            found += [answer["abcd".index(register)] for register in registers]
            if leaf == 1 and answer[2] & _OSXSAVE:
                enabled(ctypes.addressof(out))
                found += out[:2]
        return struct.pack(f"<{len(found)}I", *found)
    finally:
        arena.close()


@cache
def host_cpu() -> str:
    """What identifies this host's CPU to a compiler: where it is the same, compiled code runs as well."""
    if os.uname().machine == "x86_64" and sys.maxsize > 2**32:
        with contextlib.suppress(OSError):  # the host allows no code that is made at run time
            return _x86_64().hex()
    import llvmlite.binding as llvm

    return f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"


@cache
def compiler_version() -> str:
    """What identifies the compiler: the version of the llvmlite that would be imported, and which LLVM is in it."""
    found = PathFinder.find_spec("llvmlite")
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        try:
            version = (Path(place) / "_version.py").read_text()
            sizes = [f"{entry.name} {entry.stat().st_size}" for entry in os.scandir(Path(place) / "binding")
                     if entry.name.startswith("libllvmlite")]  # fmt: skip
        except OSError:
            continue
        if sizes:
            return "\0".join([version, *sorted(sizes)])
    import llvmlite
    import llvmlite.binding as llvm

    return f"{llvmlite.__version__} {llvm.llvm_version_info!r}"
