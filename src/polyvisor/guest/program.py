"""Static Linux programs for guests, written in the description language: compiled by LLVM, linked here.

A program is a described function ``main(stack: u64)``, which gets the initial stack pointer (System V ABI: argc, argv,
envp) and must not return; in a child that :func:`polyvisor.guest.linux.spawn` makes it gets 0. A program keeps its
data at fixed addresses, handed out by :class:`Data` while its module is imported, and reaches the kernel by
:func:`polyvisor.guest.linux.system`.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

from polyvisor.adl import Architecture, Function, ssa
from polyvisor.adl.assembler import assemble
from polyvisor.adl.frontend import Compiler
from polyvisor.adl.llvm import METADATA, llvm_type
from polyvisor.engine.lowering import HelperEmitter, result_type, signature

TEXT_BASE = 0x10000
DATA_BASE = 0x200000
_PAGE = 4096
_STUBS = ("system", "spawn")  # the platform's assembly that compiled code calls
_HEADERS = 64 + 2 * 56

# Relocations of calls (RISC-V ELF psABI, "Relocations").
_R_RISCV_CALL, _R_RISCV_CALL_PLT, _R_RISCV_RELAX = 18, 19, 51


class Data:
    """Memory of a program: constants, which are in the file, and space, which starts as zeroes."""

    def __init__(self) -> None:
        self.constants = bytearray()
        self._space = 0

    def text(self, text: str) -> int:
        """The address of ``text`` in UTF-8, ended by NUL."""
        return self.bytes(text.encode() + b"\0")

    def bytes(self, data: bytes) -> int:
        """The address of constant ``data``, aligned to 8 bytes. All constants come before any space."""
        if self._space:
            raise ValueError("constants come before space")
        address = DATA_BASE + len(self.constants)
        self.constants += data + bytes(-len(data) % 8)
        return address

    def space(self, size: int) -> int:
        """The address of ``size`` bytes that start as zeroes, aligned to 16."""
        start = -(-(len(self.constants) + self._space) // 16) * 16
        self._space = start + size - len(self.constants)
        return DATA_BASE + start

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return len(self.constants) + self._space


@dataclass(frozen=True, eq=False)
class Platform:
    """A guest's CPU and its Linux ABI. The last three are assembly: what calls ``main`` with the initial stack pointer;
    what makes a system call out of a C call with number and arguments; and what calls clone(2) with number, flags,
    stack and a pointer, and goes on at ``main`` in the child, with 0."""

    architecture: Architecture
    triple: str
    cpu: str
    features: str
    elf_machine: int
    elf_flags: int
    start: str
    system: str
    spawn: str


class _Emitter(HelperEmitter):
    def __init__(self, function: ssa.Function) -> None:
        super().__init__(function, None, None)  # type: ignore[arg-type]  # there is no CPU whose state it could use

    def text(self) -> str:
        """The whole function; the compiler may not put calls of a C library or jump tables into it."""
        parameters = ["ptr %cpu", *(f"{llvm_type(p.type)} %v{p.number}" for p in self.function.parameters)]
        body = self.body()
        head = f'define internal {result_type(self.function)} @"{self.function.name}"({", ".join(parameters)}) #0 {{'
        return f"{head}\nentry:\n  br label %b{self.function.blocks[0].number}\n{body}}}\n"

    def op_host_call(self, op: ssa.Op) -> None:
        arguments = ", ".join(self.typed(a) for a in op.arguments)
        self.declare(op.detail, f"declare i64 @{op.detail}({', '.join(['i64'] * len(op.arguments))})")
        self.define(op, f"call i64 @{op.detail}({arguments})")


def build(main: Function, data: Data, platform: Platform) -> bytes:
    """Compile and link a program; gives the ELF file."""
    start = bytes(assemble(platform.architecture, platform.start + "\nmain:\n").bytes)
    code_at = -(-len(start) // 16) * 16
    code = _compile(main, platform)
    entry = code_at + code.main
    text = bytearray(code_at)
    text[: len(start)] = assemble(platform.architecture, platform.start, symbols={"main": entry}).bytes
    text += code.text
    stubs = {}
    for name in _STUBS:
        text += bytes(-len(text) % 16)
        stubs[name] = len(text)
        text += assemble(platform.architecture, getattr(platform, name), len(text), {"main": entry}).bytes
    for place, name in code.calls:
        _patch_call(text, code_at + place, stubs[name])
    return _elf(bytes(text), data, platform)


@dataclass(frozen=True)
class _Code:
    text: bytes
    main: int
    """Where ``main`` is in it."""
    calls: list[tuple[int, str]]
    """Where stubs are called, and which."""


def _module(main: Function, platform: Platform) -> str:
    """The LLVM text of ``main`` and all it calls."""
    root = Compiler(platform.architecture, {}).function(main)
    done: dict[str, str] = {}
    declarations: dict[str, str] = {}
    todo = [root]
    while todo:
        callee = todo.pop()
        if callee.name not in done:
            emitter = _Emitter(callee)
            done[callee.name] = emitter.text()
            declarations |= emitter.declarations
            todo.extend(emitter.callees)
    outside = [text for symbol, text in declarations.items() if symbol not in done]
    parameters = ", ".join(["ptr null", *(f"{llvm_type(p.type)} %a" for p in root.parameters)])
    call = f'call {result_type(root)} @"{root.name}"({parameters})'
    wrapper = f"define void @main(i64 %a) #0 {{\n  {call}\n  ret void\n}}"
    assert signature(root) == "ptr, i64", "main takes the stack pointer"
    attributes = 'attributes #0 = { nounwind "no-builtins" "no-jump-tables"="true" }'
    return "\n".join([*outside, *done.values(), wrapper, attributes, METADATA])


def _compile(main: Function, platform: Platform) -> _Code:
    # Only here: most programs were compiled before, and are in a cache.
    import llvmlite.binding as llvm
    from elftools.elf.elffile import ELFFile

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(platform.triple)
    machine = target.create_target_machine(
        cpu=platform.cpu, features=platform.features, opt=2, reloc="static", codemodel="small"
    )
    module = llvm.parse_assembly(_module(main, platform))
    module.triple = platform.triple
    module.data_layout = str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    elf = ELFFile(io.BytesIO(machine.emit_object(module)))
    symbols: Any = elf.get_section_by_name(".symtab")
    text: Any = elf.get_section_by_name(".text")
    calls = []
    sections: list[Any] = list(elf.iter_sections())
    for section in sections:
        if section["sh_type"] == "SHT_RELA" and elf.get_section(section["sh_info"]).name == ".text":
            for relocation in section.iter_relocations():
                kind = relocation["r_info_type"]
                name = symbols.get_symbol(relocation["r_info_sym"]).name
                if kind == _R_RISCV_RELAX:
                    continue
                if kind not in (_R_RISCV_CALL, _R_RISCV_CALL_PLT) or name not in _STUBS:
                    raise ValueError(f"relocation {kind} of {name!r}: the program needs what is not linked here")
                calls.append((relocation["r_offset"], name))
        elif section["sh_flags"] & 2 and section["sh_size"] and section.name not in (".text", ".eh_frame"):
            raise ValueError(f"section {section.name}: the program has data that the compiler placed")
    return _Code(text.data(), symbols.get_symbol_by_name("main")[0]["st_value"], calls)


def _patch_call(text: bytearray, place: int, target: int) -> None:
    """Let ``auipc ra; jalr ra`` at ``place`` call ``target``; both are offsets in the text."""
    offset = target - place
    high = (offset + 0x800) >> 12
    auipc, jalr = struct.unpack_from("<II", text, place)
    auipc = auipc & 0xFFF | (high & 0xFFFFF) << 12
    jalr = jalr & 0xFFFFF | (offset - (high << 12) & 0xFFF) << 20
    struct.pack_into("<II", text, place, auipc, jalr)


def _elf(text: bytes, data: Data, platform: Platform) -> bytes:
    """An executable of two segments: headers and text, then data (ELF-64 specification)."""
    text_at = _HEADERS
    data_at = -(-(text_at + len(text)) // _PAGE) * _PAGE
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 2, platform.elf_machine, 1, TEXT_BASE + text_at, 64, 0,
        platform.elf_flags, 64, 56, 2, 64, 0, 0,
    )  # fmt: skip
    size = text_at + len(text)
    code = struct.pack("<IIQQQQQQ", 1, 5, 0, TEXT_BASE, TEXT_BASE, size, size, _PAGE)
    constants = len(data.constants)
    memory = struct.pack("<IIQQQQQQ", 1, 6, data_at, DATA_BASE, DATA_BASE, constants, data.size, _PAGE)
    image = header + code + memory + text
    return image + bytes(data_at - len(image)) + bytes(data.constants)
