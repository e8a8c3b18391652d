"""The `virt` board: the memory map and devices that RISC-V operating systems already support.

The map is in :mod:`polyvisor.boards.memory_map`; what is on it is told to the guest by the device tree of
:mod:`polyvisor.boards.device_tree`.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from polyvisor.dataclass import dataclass, field
from polyvisor.devices.aclint import Aclint
from polyvisor.devices.plic import Plic
from polyvisor.devices.rtc import GoldfishRtc
from polyvisor.devices.syscon import Test
from polyvisor.devices.uart import Uart16550
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.mmio import EmptySlot, VirtioMmio
from polyvisor.devices.virtio.rng import RngDevice
from polyvisor.devices.virtio.transport import Transport
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.executor import Executor, ReferenceExecutor
from polyvisor.engine.memory import Device, Extent, Memory
from polyvisor.engine.native import NativeCode, native_code
from polyvisor.engine.timing import Timing
from polyvisor.isa.riscv import rv64

from . import memory_map as at
from .elf import ElfProgram, load_elf
from .htif import Htif
from .placing import Data, LoadError, place_high
from .riscv_hart import RiscvHart
from .sbi import Sbi

if TYPE_CHECKING:  # imported when they are made
    from polyvisor.devices.pci.host import PciHost
    from polyvisor.devices.virtio.pci import VirtioPci
    from polyvisor.engine.conductor import Conductor
    from polyvisor.engine.regions.manager import Regions

TIERS = ("jit", "interpreter", "reference")
# Where virtio devices can be, and how many with the entropy device: on PCI, one place is the bridge's own.
BUSES = {"mmio": at.VIRTIO_SLOTS, "pci": at.PCI_DEVICES - 1}
MAX_CPUS = 64
# Of many machines that are copies, each has few workers, if any: only one that executes so many instructions by itself.
_WORKERS_OF_FORK, _WORTH_COMPILING = 1, 1_000_000_000
# And only after so many it looks for what was compiled before.
_WORTH_LOOKING = 20_000_000

# struct fw_dynamic_info, version 2 (OpenSBI, docs/firmware/fw_dynamic.md): magic, version, where to go on, in which
# mode, options, which hart boots.
_DYNAMIC_INFO = struct.Struct("<6Q")
_DYNAMIC_MAGIC = 0x4942534F
_DYNAMIC_INFO_AT = at.MROM.base + 0x100


@dataclass(frozen=True)
class VirtConfig:
    """What is on the board.

    ``memory`` in bytes; ``cpus`` harts; ``tier`` of the engine; ``virtual_time``: time follows executed instructions
    instead of the host's clock, and harts run one at a time, as ``timing`` says; ``entropy``: where the guest's random
    numbers come from; ``devices``: what makes the virtio devices beside the entropy device, in this order. The board
    closes those it made.
    ``bus``: where the virtio devices are, ``mmio`` or ``pci``; ``packed``: offer them packed virtqueues.
    """

    memory: int = 512 << 20
    cpus: int = 1
    devices: Sequence[Callable[[], VirtioDevice]] = ()
    bus: str = "mmio"
    packed: bool = False
    tier: str = "jit"
    virtual_time: bool = False
    timing: Timing = field(default_factory=Timing)
    entropy: Callable[[int], bytes] = field(default=os.urandom)


class _Clock:
    """The board's time counter, as the ACLINT sees it: that of all harts."""

    def __init__(self, harts: Sequence[RiscvHart], conductor: Conductor | None) -> None:
        self._harts = harts
        self._conductor = conductor

    def _current(self) -> Executor:
        """A CPU that knows the time: in virtual time, the one whose turn it is."""
        running = self._conductor.running if self._conductor is not None else None
        return (running or self._harts[0]).cpu

    def ticks(self) -> int:
        return self._current().clock

    def set_ticks(self, value: int) -> None:
        # One offset for all: a kernel takes it as given that no hart's time is behind another's.
        current = self._current()
        current.clock = value
        for hart in self._harts:
            hart.cpu.clock_offset = current.clock_offset


def _make_devices(makers: Sequence[Callable[[], VirtioDevice]]) -> list[VirtioDevice]:
    """All devices, or none: those made before one that cannot be are closed again."""
    made: list[VirtioDevice] = []
    try:
        for make in makers:
            made.append(make())
    except BaseException:
        with ExitStack() as closing:
            for device in made:
                closing.callback(device.close)
        raise
    return made


class Virt:
    """The board. ``output`` takes what the console prints; ``power(kind, code)`` is told of ``off`` and ``reset``.

    ``failed`` is told when a hart's thread died of an error of ours or of a device.
    """

    def __init__(
        self,
        config: VirtConfig,
        *,
        output: Callable[[bytes], None],
        power: Callable[[str, int], None],
        failed: Callable[[BaseException], None],
        progress: Callable[[str], None] | None = None,
        ram: Mapping[int, Sequence[Extent]] | None = None,
    ) -> None:
        """``ram``: what RAM begins with, by its base, as :meth:`Memory.add_ram` takes it; by default with zeroes."""
        if not 1 <= config.cpus <= MAX_CPUS:
            raise ValueError(f"{config.cpus} CPUs; the board takes 1 to {MAX_CPUS}")
        if config.tier not in TIERS:
            raise ValueError(f"there is no tier {config.tier!r}; there are {', '.join(TIERS)}")
        if config.bus not in BUSES:
            raise ValueError(f"there is no bus {config.bus!r}; there are {', '.join(BUSES)}")
        if len(config.devices) >= BUSES[config.bus]:
            most = BUSES[config.bus] - 1
            raise ValueError(f"{len(config.devices)} virtio devices; the board takes {most} on {config.bus}")
        self.config = config
        self.power = power
        self.memory = memory = Memory()
        ram = ram or {}
        memory.add_ram(at.MROM.base, at.MROM.size, "rom", ram.get(at.MROM.base))
        memory.add_ram(at.DRAM_BASE, config.memory, "ram", ram.get(at.DRAM_BASE))
        self.code: NativeCode | None = None
        self.pages: CodePages | None = None
        self._regions: Regions | None = None
        self._regions_lock = threading.Lock()
        self._copied_at = 0  # instructions that were executed before this process was copied
        self._closed = False
        if config.tier != "reference":
            self.code = native_code(rv64, progress)
            self.code.warm()
            self.pages = CodePages(self.code, memory)
        self.harts = [
            RiscvHart(self._executor(), number, at.TIMEBASE_FREQUENCY, failed) for number in range(config.cpus)
        ]
        for hart in self.harts:
            hart.cpu.connect([each.cpu for each in self.harts])
        self.conductor: Conductor | None = None
        if config.virtual_time:
            from polyvisor.engine.conductor import Conductor

            self.conductor = Conductor(self.harts, config.timing, failed)
        self.clock = _Clock(self.harts, self.conductor)
        self.clock.set_ticks(0)
        lines = [hart.line(name) for hart in self.harts for name in ("meip", "seip")]
        self.plic = Plic(at.PLIC_SOURCES, lines)
        self.aclint = Aclint(self.harts, self.clock)
        self.uart = Uart16550(self.plic.line(at.UART.irq), output)
        start = config.timing.start
        self.started_at = start if start is not None else time.time_ns()
        """The wall time at virtual time 0, in nanoseconds since 1970-01-01 UTC."""
        self.rtc = self._make_rtc()
        self.test = Test(lambda code: power("off", code), lambda: power("reset", 0))
        fixed: dict[at.Region, Device] = {
            at.TEST: self.test, at.RTC: self.rtc, at.CLINT: self.aclint, at.PLIC: self.plic, at.UART: self.uart
        }
        for region, device in fixed.items():
            memory.add_device(region.base, region.size, device)
        self.virtio_devices = _make_devices([lambda: RngDevice(config.entropy), *config.devices])
        if self.conductor is not None:
            self.uart.connect(self.conductor.outside)
            for number, each in enumerate(self.virtio_devices):
                each.enter_by(self.conductor.outside, f"virtio{number}")
        self.pci: PciHost | None = None
        self.virtio: Sequence[Transport] = self._add_pci() if config.bus == "pci" else self._add_mmio()
        self.sbi = Sbi(self.harts, memory, output, self.read_input, power)
        for hart in self.harts:
            hart.handlers["sbi"] = self.sbi.handle
        self.htif: Htif | None = None
        self.program: ElfProgram | None = None
        self.boot_harts: list[RiscvHart] = []
        self._output = output

    def _make_rtc(self) -> GoldfishRtc:
        line, conductor = self.plic.line(at.RTC.irq), self.conductor
        if conductor is None:
            return GoldfishRtc(line, time.time_ns)
        start = self.started_at
        return GoldfishRtc(line, lambda: start + conductor.now, conductor)

    def _executor(self) -> Executor:
        virtual = self.config.virtual_time
        if self.code is None or self.pages is None:
            return ReferenceExecutor(rv64, self.memory, frequency=at.TIMEBASE_FREQUENCY, virtual=virtual)
        return Cpu(
            self.code, self.memory, self.pages, frequency=at.TIMEBASE_FREQUENCY, virtual=virtual, waits=not virtual
        )

    def _add_mmio(self) -> list[VirtioMmio]:
        """Give each virtio device a register block."""
        transports: list[VirtioMmio] = []
        for device, region in zip(self.virtio_devices, at.VIRTIO, strict=False):
            transports.append(VirtioMmio(self.memory, self.plic.line(region.irq), device, self.config.packed))
            self.memory.add_device(region.base, region.size, transports[-1])
        self._add_empty_slots(len(transports))
        return transports

    def _add_pci(self) -> list[VirtioPci]:
        """Put each virtio device on the PCI bus."""
        from polyvisor.devices.pci.host import PciHost
        from polyvisor.devices.virtio.pci import VirtioPci

        pci = self.pci = PciHost([self.plic.line(irq) for irq in at.PCI_IRQS], at.PCI_MEMORY.base, at.PCI_MEMORY.size)
        windows = {at.PCI_CONFIG: pci.ecam, at.PCI_MEMORY: pci.memory, at.PCI_IO: pci.io}
        for region, window in windows.items():
            self.memory.add_device(region.base, region.size, window)
        transports = [VirtioPci(self.memory, device, self.config.packed) for device in self.virtio_devices]
        for transport in transports:
            pci.plug(transport.function)
        self._add_empty_slots(0)
        return transports

    def _add_empty_slots(self, first: int) -> None:
        for region in at.VIRTIO[first : at.VIRTIO_FIXED_SLOTS]:
            self.memory.add_device(region.base, region.size, EmptySlot())

    def read_input(self, count: int) -> bytes:
        """Console input that the guest asks the SBI for: it takes from what waits at the serial port."""
        return self.uart.take(count)

    # What runs on it

    def load_linux(self, kernel: Data, initrd: Data | None, command_line: str, firmware: bytes | None = None) -> None:
        """Place a kernel, an initramfs and the device tree, and make the harts ready.

        With ``firmware`` (machine mode, such as OpenSBI's ``fw_dynamic``), that starts first; without, the platform
        serves the SBI itself and the kernel starts in supervisor mode. Raises LoadError.
        """
        from .linux_boot import boot_linux

        def tree(initrd: tuple[int, int] | None) -> bytes:
            return self._device_tree(command_line, initrd)

        boot = boot_linux(self.memory, kernel, initrd if initrd is not None and len(initrd) else None, tree)
        if firmware is None:
            self.harts[0].reset_supervisor_mode(boot.entry, boot.device_tree)
            self.boot_harts = self.harts[:1]
            return
        self._load_firmware(firmware, boot.kernel.start)
        info = _DYNAMIC_INFO.pack(_DYNAMIC_MAGIC, 2, boot.entry, 1, 0, 0)
        self.memory.write(_DYNAMIC_INFO_AT, info)
        for hart in self.harts:
            hart.reset_machine_mode(at.DRAM_BASE, boot.device_tree, _DYNAMIC_INFO_AT)
        self.boot_harts = list(self.harts)

    def _device_tree(self, command_line: str = "", initrd: tuple[int, int] | None = None) -> bytes:
        from .device_tree import device_tree

        return device_tree(
            memory_size=self.config.memory, harts=self.config.cpus, command_line=command_line, initrd=initrd,
            rng_seed=self.config.entropy(32), pci=self.pci is not None,
            # A kernel need not look at slots that are empty because all is on PCI.
            virtio_slots=0 if self.pci is not None else max(len(self.virtio), at.VIRTIO_FIXED_SLOTS),
        )

    def _load_firmware(self, firmware: bytes, end: int) -> None:
        if firmware[:4] == b"\x7fELF":
            load_elf(self.memory, firmware)
        elif at.DRAM_BASE + len(firmware) > end:
            raise LoadError(f"the firmware has {len(firmware)} bytes; it must end where the kernel starts, at {end:#x}")
        else:
            self.memory.write(at.DRAM_BASE, firmware)

    def load_program(self, data: bytes) -> None:
        """Place a bare-metal ELF program; all harts start at its entry in machine mode. Raises LoadError."""
        program = load_elf(self.memory, data)
        try:
            fdt = place_high(self.memory, self._device_tree(), at.DRAM_BASE, floor=program.end, what="device tree")
        except LoadError:
            fdt = 0  # a program that fills memory does without
        self.set_program(program)
        for hart in self.harts:
            hart.reset_machine_mode(program.entry, fdt)
        self.boot_harts = list(self.harts)

    @property
    def regions(self) -> Regions | None:
        """The compiled regions, in the tier that has them; made when first asked for, so that no hart waits for it."""
        with self._regions_lock:
            if self._regions is None and self.config.tier == "jit" and not self._closed:
                from polyvisor.engine.regions.backend import WorkerBackend
                from polyvisor.engine.regions.manager import Regions

                assert self.code is not None and self.pages is not None
                self._regions = Regions(self.code, self.pages, WorkerBackend(self.code.workers, self.config.cpus))
                for hart in self.harts:
                    self._regions.watch(hart.cpu)
            return self._regions

    def start_compiling(self) -> None:
        """Let hot code be compiled beside the guest. Called when the harts run, because they need not wait for it."""
        if self.regions is not None:
            self.regions.start()
            self.regions.code.workers.ready()

    def set_program(self, program: ElfProgram | None) -> None:
        """Serve the host-target interface of the program that is in RAM, if it has one."""
        self.program, self.htif = program, None
        if program is not None and program.tohost is not None:
            self.htif = Htif(self.memory, program.tohost, program.fromhost, self._output)

    def revive(self, first: bool = True) -> None:
        """In a copy of the process (``os.fork``), which has none of its threads: let harts and devices have new ones.

        The harts stand still. ``first``: of the boards in this process, which have their native code in common.
        """
        if self.code is not None and first:
            self.code.revive(_WORKERS_OF_FORK)
        if self.pages is not None:
            self.pages.revive()
        self._regions_lock = threading.Lock()
        self._copied_at = self._retired()
        if self.regions is not None:
            from polyvisor.engine.regions.backend import LateBackend, WorkerBackend

            assert self.code is not None
            workers = self.code.workers
            self.regions.revive(
                LateBackend(
                    lambda: WorkerBackend(workers, self.config.cpus),
                    lambda: self._retired() - self._copied_at > _WORTH_COMPILING,
                )
            )
        for hart in self.harts:
            hart.revive()
        if self.conductor is not None:
            self.conductor.revive()
        self.rtc.revive()

    def compile_if_worth(self) -> bool:
        """In a copy of the process, where harts run: have hot code looked after if it has executed enough by itself.

        Gives whether this need not be asked again.
        """
        if self.regions is None:
            return True
        if self._retired() - self._copied_at < _WORTH_LOOKING:
            return False
        self.regions.start()
        return True

    def _retired(self) -> int:
        return sum(hart.cpu.retired for hart in self.harts)

    def reconnect(self) -> None:
        """Tell drivers that the world outside is another one, see VirtioDevice."""
        for device in self.virtio_devices:
            with device.guard():
                device.reconnected()

    def close(self) -> None:
        """Give back what the board holds on the host. Whatever a device raises, all the others are closed before."""
        with self._regions_lock:
            self._closed = True
        with ExitStack() as closing:  # calls the last one first
            closing.callback(self.memory.close)
            for transport in self.virtio:
                closing.callback(transport.close)
            for device in reversed(self.virtio_devices):
                closing.callback(device.close)
            closing.callback(self.rtc.close)
            if self.pages is not None:
                closing.callback(self.pages.close)
            if self._regions is not None:
                closing.callback(self._regions.close)
