"""The flattened device tree that tells an operating system what is on the `virt` board.

Written from the Devicetree Specification 0.4 and the bindings in Linux, Documentation/devicetree/bindings.
"""

from __future__ import annotations

from typing import Any

from fdt import FDT, Node, PropBytes, Property, PropStrings, PropWords

from . import memory_map as at

EXTENSIONS = tuple("i m a f d c zicntr zicsr zifencei zihpm zba zbb zbs sstc svadu svinval".split())
_ISA = "rv64imafdc_" + "_".join(EXTENSIONS[6:])
_PLIC, _TEST, _FIRST_INTC = 1, 2, 16  # phandles; interrupt controllers of harts follow the last


def device_tree(
    *, memory_size: int, harts: int, command_line: str, initrd: tuple[int, int] | None, rng_seed: bytes
) -> bytes:
    """The tree as a blob.

    ``memory_size`` bytes of RAM, ``harts`` CPUs, the kernel's ``command_line``, where the ``initrd`` starts and ends,
    and ``rng_seed``, random bytes that start the kernel's random number generator.
    """
    root = _node(
        "/", ("#address-cells", 2), ("#size-cells", 2), ("compatible", "riscv-virtio"), ("model", "polyvisor,virt")
    )
    root.append(_chosen(command_line, initrd, rng_seed))
    root.append(_node(f"memory@{at.DRAM:x}", ("device_type", "memory"), ("reg", _reg(at.DRAM, memory_size))))
    root.append(_cpus(harts))
    root.append(_soc(harts))
    for name, value in (("poweroff", 0x5555), ("reboot", 0x7777)):
        root.append(
            _node(name, ("compatible", f"syscon-{name}"), ("regmap", _TEST), ("offset", 0), ("value", value))
        )
    tree = FDT()
    tree.root = root
    blob: bytes = tree.to_dtb(version=17)
    return blob


def _node(name: str, *properties: tuple[str, Any]) -> Node:
    node = Node(name)
    for key, value in properties:
        match value:
            case None:
                node.append(Property(key))
            case str():
                node.append(PropStrings(key, value))
            case tuple() if isinstance(value[0], str):
                node.append(PropStrings(key, *value))
            case bytes():
                node.append(PropBytes(key, data=value))
            case int():
                node.append(PropWords(key, value))
            case _:
                node.append(PropWords(key, *value))
    return node


def _cells(value: int) -> list[int]:
    return [value >> 32, value & 0xFFFF_FFFF]


def _reg(base: int, size: int) -> list[int]:
    return _cells(base) + _cells(size)


def _chosen(command_line: str, initrd: tuple[int, int] | None, rng_seed: bytes) -> Node:
    node = _node(
        "chosen", ("stdout-path", f"/soc/serial@{at.UART:x}"), ("bootargs", command_line), ("rng-seed", rng_seed)
    )
    if initrd is not None:
        for key, address in zip(("linux,initrd-start", "linux,initrd-end"), initrd, strict=True):
            node.append(PropWords(key, *_cells(address)))
    return node


def _cpus(harts: int) -> Node:
    cpus = _node("cpus", ("#address-cells", 1), ("#size-cells", 0), ("timebase-frequency", at.TIMEBASE))
    for hart in range(harts):
        cpu = _node(
            f"cpu@{hart:x}",
            ("device_type", "cpu"),
            ("reg", hart),
            ("status", "okay"),
            ("compatible", "riscv"),
            ("riscv,isa", _ISA),
            ("riscv,isa-base", "rv64i"),
            ("riscv,isa-extensions", EXTENSIONS),
            ("mmu-type", "riscv,sv57"),
        )
        cpu.append(
            _node(
                "interrupt-controller",
                ("#interrupt-cells", 1),
                ("interrupt-controller", None),
                ("compatible", "riscv,cpu-intc"),
                ("phandle", _FIRST_INTC + hart),
            )
        )
        cpus.append(cpu)
    return cpus


def _soc(harts: int) -> Node:
    soc = _node("soc", ("#address-cells", 2), ("#size-cells", 2), ("compatible", "simple-bus"), ("ranges", None))
    soc.append(
        _node(
            f"test@{at.TEST:x}",
            ("compatible", ("sifive,test1", "sifive,test0", "syscon")),
            ("reg", _reg(at.TEST, at.TEST_SIZE)),
            ("phandle", _TEST),
        )
    )
    soc.append(_interrupting("rtc", at.RTC, at.RTC_SIZE, at.RTC_IRQ, "google,goldfish-rtc"))
    soc.append(_interrupting("serial", at.UART, at.UART_SIZE, at.UART_IRQ, "ns16550a", at.UART_CLOCK))
    for slot in range(at.VIRTIO_SLOTS):
        base = at.VIRTIO + slot * at.VIRTIO_STRIDE
        soc.append(_interrupting("virtio_mmio", base, at.VIRTIO_SIZE, at.VIRTIO_IRQ + slot, "virtio,mmio"))
    # Of each hart: machine software and timer interrupt; machine and supervisor external interrupt.
    timers = [cell for h in range(harts) for cell in (_FIRST_INTC + h, 3, _FIRST_INTC + h, 7)]
    external = [cell for h in range(harts) for cell in (_FIRST_INTC + h, 11, _FIRST_INTC + h, 9)]
    soc.append(
        _node(
            f"clint@{at.ACLINT:x}",
            ("compatible", ("sifive,clint0", "riscv,clint0")),
            ("reg", _reg(at.ACLINT, at.ACLINT_SIZE)),
            ("interrupts-extended", timers),
        )
    )
    soc.append(
        _node(
            f"plic@{at.PLIC:x}",
            ("compatible", ("sifive,plic-1.0.0", "riscv,plic0")),
            ("reg", _reg(at.PLIC, at.PLIC_SIZE)),
            ("#address-cells", 0),
            ("#interrupt-cells", 1),
            ("interrupt-controller", None),
            ("interrupts-extended", external),
            ("riscv,ndev", at.PLIC_SOURCES - 1),
            ("phandle", _PLIC),
        )
    )
    return soc


def _interrupting(name: str, base: int, size: int, irq: int, compatible: str, clock: int | None = None) -> Node:
    node = _node(
        f"{name}@{base:x}",
        ("compatible", compatible),
        ("reg", _reg(base, size)),
        ("interrupts", irq),
        ("interrupt-parent", _PLIC),
    )
    if clock is not None:
        node.append(PropWords("clock-frequency", clock))
    return node
