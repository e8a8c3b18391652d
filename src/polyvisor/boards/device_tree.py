"""The flattened device tree a guest finds its machine in (Devicetree Specification v0.4, chapter 5).

Bindings are those of the Linux kernel's Documentation/devicetree/bindings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import fdt

from polyvisor.boards import memory_map as at

DEFAULT_EXTENSIONS: tuple[str, ...] = (
    *("i", "m", "a", "f", "d", "c", "zicntr", "zicsr", "zifencei", "zihpm"),
    *("zba", "zbb", "zbs", "sstc", "svadu", "svinval"),
)

_MMU_TYPES = ("riscv,none", "riscv,sv39", "riscv,sv48", "riscv,sv57")

# Interrupt numbers of a hart (Privileged ISA, "Machine Cause Register").
_MACHINE_SOFTWARE = 3
_MACHINE_TIMER = 7
_SUPERVISOR_EXTERNAL = 9
_MACHINE_EXTERNAL = 11

# The first cell of a PCI address: the space, or where the device's number is.
_PCI_IO = 0x0100_0000
_PCI_MEMORY = 0x0200_0000
_PCI_DEVICE_SHIFT = 11


class DeviceTreeError(ValueError):
    """What was asked for cannot be described in a device tree."""


def device_tree(
    *,
    memory_size: int,
    harts: int,
    command_line: str = "",
    initrd: tuple[int, int] | None = None,
    rng_seed: bytes = b"",
    extensions: Sequence[str] = DEFAULT_EXTENSIONS,
    mmu: str = "riscv,sv57",
    virtio_slots: int = at.VIRTIO_FIXED_SLOTS,
    pci: bool = False,
) -> bytes:
    """The device tree of a ``virt`` board, as a blob of version 17.

    ``memory_size`` is in bytes; ``harts`` counts harts numbered from 0; ``initrd`` is (first address, address after
    the last byte); ``rng_seed`` is entropy for the guest and is left out when empty. ``extensions`` are lower-case
    names beginning with "i" (bindings/riscv/extensions.yaml); ``mmu`` is a value of ``mmu-type``;
    ``virtio_slots`` is how many register blocks of virtio devices there are; ``pci``: there is a PCI host bridge.
    Raises :class:`DeviceTreeError`.
    """
    _check(memory_size, harts, command_line, initrd, extensions, mmu)
    intcs = list(range(1, harts + 1))
    plic, test = harts + 1, harts + 2

    tree = fdt.FDT()
    tree.entries = []  # memory reservations; the library's default is one list shared by all trees
    root = tree.root
    _cells(root, 2, 2)
    _strings(root, "compatible", "riscv-virtio")
    _strings(root, "model", "polyvisor,virt")
    root.append(_chosen(command_line, initrd, rng_seed))
    root.append(_node(f"memory@{at.DRAM_BASE:x}", device_type="memory", reg=_u64(at.DRAM_BASE, memory_size)))
    root.append(_cpus(intcs, extensions, mmu))
    soc = _soc(intcs, plic, test, virtio_slots)
    if pci:
        soc.append(_pci(plic))
    root.append(soc)
    for name, value in (("poweroff", at.TEST_POWER_OFF), ("reboot", at.TEST_REBOOT)):
        compatible = f"syscon-{name}"
        root.append(_node(name, compatible=compatible, regmap=[test], offset=[at.TEST_OFFSET], value=[value]))
    blob: bytes = tree.to_dtb(version=17, last_comp_version=16, boot_cpuid_phys=0)
    return blob


def _check(
    memory_size: int,
    harts: int,
    command_line: str,
    initrd: tuple[int, int] | None,
    extensions: Sequence[str],
    mmu: str,
) -> None:
    if not 0 < memory_size <= 2**64 - at.DRAM_BASE:
        raise DeviceTreeError(f"a machine cannot have {memory_size} bytes of RAM")
    if not 1 <= harts <= at.MAX_HARTS:
        raise DeviceTreeError(f"a machine has 1 to {at.MAX_HARTS} harts, not {harts}")
    if "\0" in command_line:
        raise DeviceTreeError("the kernel command line contains a NUL character")
    if initrd is not None and not 0 <= initrd[0] <= initrd[1] < 2**64:
        raise DeviceTreeError(f"the initrd cannot be at {initrd[0]:#x}..{initrd[1]:#x}")
    if not extensions or extensions[0] != "i":
        raise DeviceTreeError("the list of extensions must begin with the base, 'i'")
    for name in extensions:
        if not re.fullmatch(r"[a-z]|[szx][a-z0-9]+", name):
            raise DeviceTreeError(f"{name!r} is not the name of an extension")
    if mmu not in _MMU_TYPES:
        raise DeviceTreeError(f"mmu-type is one of {', '.join(_MMU_TYPES)}, not {mmu!r}")


def isa_string(extensions: Sequence[str]) -> str:
    """The ``riscv,isa`` string of a 64-bit hart: single letters, then the longer names, as ordered in the list."""
    letters = "".join(name for name in extensions if len(name) == 1)
    return "_".join([f"rv64{letters}", *(name for name in extensions if len(name) > 1)])


# Nodes


def _chosen(command_line: str, initrd: tuple[int, int] | None, rng_seed: bytes) -> fdt.Node:
    chosen = fdt.Node("chosen")
    # Bytes: the library's strings are never empty and never more than ASCII.
    chosen.append(fdt.PropBytes("bootargs", data=command_line.encode("utf-8", "surrogateescape") + b"\0"))
    _strings(chosen, "stdout-path", f"/soc/serial@{at.UART.base:x}")
    if initrd is not None:
        chosen.append(fdt.PropWords("linux,initrd-start", *_u64(initrd[0])))
        chosen.append(fdt.PropWords("linux,initrd-end", *_u64(initrd[1])))
    if rng_seed:
        chosen.append(fdt.PropBytes("rng-seed", data=bytes(rng_seed)))
    return chosen


def _cpus(intcs: Sequence[int], extensions: Sequence[str], mmu: str) -> fdt.Node:
    cpus = _node("cpus")
    _cells(cpus, 1, 0)
    cpus.append(fdt.PropWords("timebase-frequency", at.TIMEBASE_FREQUENCY))
    for number, phandle in enumerate(intcs):
        cpu = _node(f"cpu@{number:x}", device_type="cpu", reg=[number], status="okay", compatible="riscv")
        _strings(cpu, "riscv,isa", isa_string(extensions))
        _strings(cpu, "riscv,isa-base", "rv64i")
        _strings(cpu, "riscv,isa-extensions", *extensions)
        _strings(cpu, "mmu-type", mmu)
        intc = _node("interrupt-controller", compatible="riscv,cpu-intc", phandle=[phandle])
        _interrupt_controller(intc)
        cpu.append(intc)
        cpus.append(cpu)
    return cpus


def _soc(intcs: Sequence[int], plic: int, test: int, virtio_slots: int) -> fdt.Node:
    soc = _node("soc", compatible="simple-bus")
    _cells(soc, 2, 2)
    soc.append(fdt.Property("ranges"))

    finisher = _device("test", at.TEST)
    _strings(finisher, "compatible", "sifive,test1", "sifive,test0", "syscon")
    finisher.append(fdt.PropWords("phandle", test))
    soc.append(finisher)

    rtc = _device("rtc", at.RTC, plic)
    _strings(rtc, "compatible", "google,goldfish-rtc")
    soc.append(rtc)

    clint = _device("clint", at.CLINT)
    _strings(clint, "compatible", "sifive,clint0", "riscv,clint0")
    clint.append(_lines(intcs, _MACHINE_SOFTWARE, _MACHINE_TIMER))
    soc.append(clint)

    controller = _device("interrupt-controller", at.PLIC)
    _strings(controller, "compatible", "sifive,plic-1.0.0", "riscv,plic0")
    controller.append(_lines(intcs, _MACHINE_EXTERNAL, _SUPERVISOR_EXTERNAL))
    controller.append(fdt.PropWords("riscv,ndev", at.PLIC_SOURCES - 1))
    controller.append(fdt.PropWords("phandle", plic))
    controller.append(fdt.PropWords("#address-cells", 0))
    _interrupt_controller(controller)
    soc.append(controller)

    serial = _device("serial", at.UART, plic)
    _strings(serial, "compatible", "ns16550a")
    serial.append(fdt.PropWords("clock-frequency", at.UART_CLOCK))
    soc.append(serial)

    for slot in at.VIRTIO[:virtio_slots]:
        virtio = _device("virtio_mmio", slot, plic)
        _strings(virtio, "compatible", "virtio,mmio")
        soc.append(virtio)
    return soc


def _pci(plic: int) -> fdt.Node:
    """The host bridge (PCI Bus Binding to IEEE 1275, and bindings/pci/host-generic-pci.yaml)."""
    pci = _device("pci", at.PCI_CONFIG)
    from polyvisor.devices.pci.host import PINS, line_of

    _strings(pci, "compatible", "pci-host-ecam-generic")
    _strings(pci, "device_type", "pci")
    _cells(pci, 3, 2)
    pci.append(fdt.PropWords("#interrupt-cells", 1))
    pci.append(fdt.PropWords("bus-range", 0, (at.PCI_CONFIG.size >> 20) - 1))
    pci.append(fdt.PropWords("linux,pci-domain", 0))
    pci.append(fdt.Property("dma-coherent"))
    ranges: list[int] = []
    for space, start, region in ((_PCI_IO, 0, at.PCI_IO), (_PCI_MEMORY, at.PCI_MEMORY.base, at.PCI_MEMORY)):
        ranges += [space, *_u64(start, region.base, region.size)]
    pci.append(fdt.PropWords("ranges", *ranges))
    # The lines repeat every four devices, so the number of the device counts modulo four.
    pci.append(fdt.PropWords("interrupt-map-mask", 3 << _PCI_DEVICE_SHIFT, 0, 0, 7))
    lines = [
        word
        for device in range(PINS)
        for pin in range(1, PINS + 1)
        for word in (device << _PCI_DEVICE_SHIFT, 0, 0, pin, plic, at.PCI_IRQS[line_of(device, pin)])
    ]
    pci.append(fdt.PropWords("interrupt-map", *lines))
    return pci


def _device(name: str, region: at.Region, plic: int | None = None) -> fdt.Node:
    node = _node(f"{name}@{region.base:x}", reg=_u64(region.base, region.size))
    if plic is not None:
        node.append(fdt.PropWords("interrupt-parent", plic))
        node.append(fdt.PropWords("interrupts", region.irq))
    return node


def _lines(intcs: Sequence[int], *causes: int) -> fdt.PropWords:
    words = [word for intc in intcs for cause in causes for word in (intc, cause)]
    return fdt.PropWords("interrupts-extended", *words)


# Properties


def _node(name: str, **properties: str | list[int]) -> fdt.Node:
    node = fdt.Node(name)
    for key, value in properties.items():
        if isinstance(value, str):
            _strings(node, key, value)
        else:
            node.append(fdt.PropWords(key, *value))
    return node


def _strings(node: fdt.Node, name: str, *values: str) -> None:
    node.append(fdt.PropStrings(name, *values))


def _cells(node: fdt.Node, address: int, size: int) -> None:
    node.append(fdt.PropWords("#address-cells", address))
    node.append(fdt.PropWords("#size-cells", size))


def _interrupt_controller(node: fdt.Node) -> None:
    node.append(fdt.PropWords("#interrupt-cells", 1))
    node.append(fdt.Property("interrupt-controller"))


def _u64(*values: int) -> list[int]:
    return [word for value in values for word in (value >> 32, value & 0xFFFF_FFFF)]
