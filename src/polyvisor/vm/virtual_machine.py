"""A virtual machine as an object: boot it, run commands in it, move files, type, look inside, stop it.

>>> with polyvisor.VM("debian") as vm:           # doctest: +SKIP
...     print(vm.run("uname -a").stdout)
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from polyvisor.boards.virt import VirtConfig
from polyvisor.collection import Lasting
from polyvisor.dataclass import replace
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.vsock import Stream, VsockDevice
from polyvisor.guest import protocol

from .arguments import disk_of, nic_of, root_disk_of, screen_of, shares_of, software_of
from .commands import DEFAULT, GuestCommands
from .console import Console
from .errors import BootError, ForkError, SnapshotError, StoppedError, VMError, VMTimeoutError
from .events import Events
from .inspect import CpuView, PhysicalMemory, Symbols, VirtualMemory
from .interfaces import SET_ADDRESS
from .machine import Machine
from .recording import Recording
from .sizes import parse_memory
from .software import Software

if TYPE_CHECKING:
    from polyvisor import images
    from polyvisor.network.switch import Switch

    from .equipment import Disk, Nic, Screen, Share
    from .forks.fork import Fork
    from .group.group import Group
    from .hooks import Hooks
    from .snapshot.restore import Origin
    from .snapshot.store import Last, Snapshot

# Where there is an init system that can end its services and unmount its disks, it is asked to.
_POWER_OFF = """sync
[ -d /run/systemd/system ] && systemctl poweroff && exit
[ -p /run/initctl ] && shutdown -h now && exit
poweroff -f || echo o > /proc/sysrq-trigger"""


class VM(GuestCommands):
    """A machine with a guest, from an image, a kernel, or a bare-metal program.

    Entering it as a context manager boots it and waits until its agent answers; leaving stops it. All methods may be
    called from any thread. Those that wait take a ``timeout`` in seconds, None for no limit; without one the
    machine's own, :attr:`timeout`, counts. They raise VMTimeoutError when it is over, and StoppedError when
    the machine ends meanwhile.
    """

    def __init__(
        self,
        image: str | images.Image | None = None,
        *,
        kernel: str | os.PathLike[str] | None = None,
        initrd: str | os.PathLike[str] | None = None,
        append: str = "",
        firmware: str | os.PathLike[str] | None = None,
        program: str | os.PathLike[str] | None = None,
        memory: str | int = "512M",
        cpus: int = 1,
        disks: Sequence[str | os.PathLike[str] | Disk] = (),
        shares: Sequence[str | os.PathLike[str] | Share] = (),
        networks: Sequence[str | Switch | Nic] = (),
        display: bool | tuple[int, int] | Screen | None = None,
        devices: Sequence[Callable[[], VirtioDevice]] = (),
        bus: str = "mmio",
        tier: str = "jit",
        virtual_time: bool = False,
        seed: int | None = None,
        schedule: int | None = None,
        record: str | os.PathLike[str] | None = None,
        group: Group | None = None,
        agent: bool | None = None,
        software: Software | None = None,
        reboot: bool = True,
        keep: str | os.PathLike[str] | None = None,
        timeout: float | None = 120.0,
        name: str | None = None,
        on_output: Callable[[bytes], None] | None = None,
        progress: Callable[[str], None] | None = None,
        origin: Origin | None = None,
    ) -> None:
        """Describe a machine; nothing runs yet.

        ``image``: a name (fetched or built when it is not here, which the log ``polyvisor.images`` follows), or an
        image; or else ``kernel`` with ``initrd``, or ``program``, an ELF file. ``append`` is added to the kernel's
        command line. ``memory``: ``"512M"``, ``"2G"``, or bytes. ``disks``, ``shares`` and ``networks`` are
        those of :mod:`polyvisor.vm.equipment`, or what ``polyvisor run`` takes as ``--disk``, ``--share`` and
        ``--net``, or a Switch to be plugged into; ``display``: a size, or True. ``devices`` makes further virtio
        devices, which are on ``bus``: ``"mmio"`` or ``"pci"``.

        ``agent``: whether there is one in the guest to wait for and to run commands by (default: in images).
        ``software`` instead of all that says what to run. ``reboot``: a guest that resets starts again. What the
        guest writes to the root disk that an image has is thrown away at the end; ``keep`` is a qcow2 file that has it
        for the next machine, and is made if it is not there. ``on_output`` gets the console's bytes, ``progress``
        the names of what is compiled on a first start. ``origin`` is for :meth:`restore`.

        ``virtual_time`` is for runs that can be repeated (docs/replay.md), with a ``seed`` for random numbers and a
        ``schedule`` of the harts; ``record`` is a file for :func:`polyvisor.replay`, and needs virtual time; a
        :class:`polyvisor.Group`, which starts it, has these for several machines.
        Raises ValueError, ImageError, LoadError, and at the start OSError for what cannot be opened.
        """
        self.name = name or (image if isinstance(image, str) else image.name if image else "vm")
        self.timeout = timeout
        self.disks = [disk_of(disk) for disk in disks]
        self.shares = shares_of(shares) if shares else []
        self.networks = [nic for each in networks if (nic := nic_of(each, self.name)) is not None]
        self.screen = screen_of(display)
        found = software or software_of(image, kernel, initrd, append, firmware, program, agent)
        self.described = self.software = found
        if self.shares:
            from .equipment.share import with_mounts

            line = with_mounts(found.append, self.shares, found.kernel is not None)
            self.software = replace(found, append=line)
        if keep is not None and found.disk is None:
            raise ValueError(f"keep goes with an image that has a disk of its own, and {self.name} has none")
        self._root = root_disk_of(found.disk, keep)
        makers = [
            *((self._root.make,) if self._root is not None else ()),
            *(disk.make for disk in self.disks), *(share.make for share in self.shares),
            *(nic.make for nic in self.networks), *(self.screen.makers() if self.screen else ()), *devices,
        ]  # fmt: skip
        if self.software.agent:
            makers.append(self._make_sockets)
        member = group.add(self) if group is not None else None
        self._recording = Recording(virtual_time, seed, schedule, record, member)
        self.config = VirtConfig(
            memory=parse_memory(memory), cpus=cpus, tier=tier, bus=bus, devices=makers,
            **self._recording.config(self.software.agent, self.networks),
        )
        self.reboot = reboot
        self.events = Events()
        self.exit_code: int | None = None
        self.on_machine: list[Callable[[Machine], None]] = []
        """Called with each new machine, before it runs: at the start, and at every reset."""
        self.on_fork: list[Callable[[VM, int], None]] = []
        """Called in each fork's process with the fork's machine and number, before it runs."""
        self.console = Console(self._type)
        if on_output is not None:
            self.console.listen(on_output)
        self.memory = PhysicalMemory(lambda: self.machine.board.memory, self._virtual, self._recording.may_change)
        self._progress = progress
        self._machine: Machine | None = None
        self._sockets: VsockDevice | None = None
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._greeted = False
        self._identify: Callable[[], None] | None = None  # what makes a fork another machine than its siblings
        self._greeting = True  # whether the guest is to be prepared when its agent is there
        self._stopping = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._still = threading.RLock()
        self._still_for = 0  # how many have asked it to stand still
        self._symbols: Symbols | None = None
        self._origin = origin
        self._last: Last | None = None
        self._snapshots = threading.Lock()

    # Its life

    def start(self) -> VM:
        """Let it run; does not wait for the guest. Raises OSError and ValueError for what the host cannot give."""
        if not self._start():
            raise VMError(f"{self.name} has been started already; make a new VM to start again")
        return self

    def _start(self) -> bool:
        """Start it, unless it has been; gives whether it was now."""
        with self._starting:
            if self._thread is not None:
                return False
            try:
                self._begin()
            except BaseException:
                self._close_disks()
                raise
            self._thread = threading.Thread(target=self._live, name=f"life of {self.name}", daemon=True)
            self._thread.start()
            return True

    def boot(self, timeout: float | object | None = DEFAULT) -> VM:
        """Start it, if need be, and wait until its agent answers.

        Without an agent this is :meth:`start`: what shows that such a guest is ready is for ``console.expect``. Raises
        BootError when it ends before, with the console's last lines, and VMTimeoutError.
        """
        self._start()
        return self.wait_ready(timeout)

    def wait_ready(self, timeout: float | object | None = DEFAULT) -> VM:
        """As :meth:`boot`, for who waits until somebody else has started it."""
        if self.software.agent:
            limit = self._limit(timeout)
            deadline = None if limit is None else time.monotonic() + limit
            while not self._ready.wait(0.05):
                if self._ended.is_set():
                    self._raise_failure()
                    raise BootError(f"{self.name} ended while it booted; its console ends:\n{self.console.tail()}")
                if deadline is not None and time.monotonic() > deadline:
                    raise VMTimeoutError(
                        f"{self.name}: no agent answered within {limit:g} seconds; the console ends:\n"
                        f"{self.console.tail()}"
                    )
        return self

    def _begin(self) -> None:
        """Make the next machine and let it run."""
        origin, self._origin, self._last = self._origin, None, None
        if origin is not None:
            self._greeting, self._identify = False, self._reseed
            machine, self._last = origin.machine(self.config, self.console.feed, self._progress)
        else:
            self._greeting, self._identify = True, None
            machine = Machine(self._recording.next_life(self.config), self.console.feed, self._progress)
        try:
            if origin is None:
                self.software.load(machine)
            for call in self.on_machine:
                call(machine)
            self._recording.begin(machine, self.name)
        except BaseException:
            machine.close()
            raise
        self.console.begin()
        self._symbols = None
        self._machine = machine
        machine.start()
        if self._stopping:  # kill() may have looked before this machine was there
            machine.stop()
        self.events.emit("started")

    def _live(self) -> None:
        """The machine's ends and restarts, in a thread of its own."""
        try:
            while True:
                machine = self.machine
                machine.wait()
                machine.close()
                if not machine.reset_requested or not self.reboot or self._stopping:
                    break
                self._ready.clear()
                self._greeted = False
                self.events.emit("reset")
                self._begin()
            self.exit_code = machine.exit_code
        except BaseException as error:
            self._failure = error
            self.machine.close()
            self.events.emit("failed", error)
        finally:
            # Whatever fails now, who waits for the end must hear of it.
            try:
                self._failure = self._failure or self._recording.close()
                self._close_disks()
            except BaseException as error:
                self._failure = self._failure or error
            self._ready.clear()
            self._ended.set()
            self.console.end()
            self.events.emit("stopped", self.exit_code)

    def _close_disks(self) -> None:
        """Throw away what resets have let be."""
        for disk in (self._root, *self.disks):
            if disk is not None:
                disk.close()

    def has_ended(self, timeout: float | None = 0) -> bool:
        """Whether it has ended, within ``timeout`` seconds."""
        return self._ended.wait(timeout)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the machine has ended (without a ``timeout``: for ever); gives its exit code, if it has one."""
        if not self._ended.wait(timeout):
            raise VMTimeoutError(f"{self.name} did not end within {timeout:g} seconds")
        self._raise_failure()
        return self.exit_code

    def stop(self, timeout: float | object | None = DEFAULT) -> int | None:
        """Ask the guest to power off, and cut the power if it has not in time; gives the exit code.

        By default it has 10 seconds, or 60 with a root disk, where there may be services to end.
        """
        from .root_disk import ROOT_SERIAL

        usual = 60.0 if any(disk.serial == ROOT_SERIAL for disk in self.all_disks) else 10.0
        limit: float | None = usual if timeout is DEFAULT else timeout  # type: ignore[assignment]
        self._stopping = True
        if self.running and self._ready.is_set():
            with contextlib.suppress(OSError, VMError):
                self.client.start(_POWER_OFF, detached=True, timeout=limit)
                self._ended.wait(limit)
        self.kill()
        return self.exit_code

    def kill(self) -> None:
        """Cut the power; returns when the machine has ended, at once in a function that gets the console's output.

        May be repeated.
        """
        self._stopping = True
        if self._machine is not None:
            self._machine.stop()
        ours = self._thread is threading.current_thread() or self.console.telling
        if self._thread is not None and not ours:
            self._thread.join()

    def restart(self) -> None:
        """Press the reset button; returns at once. The events tell when it is ready again."""
        self.machine.reset_requested = True
        self._ready.clear()
        self._greeted = False
        if self._sockets is not None:
            self._sockets.close()  # at once, so that no request goes to the machine that ends
        self.machine.stop()

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._thread is not None and not self._ended.is_set()

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to end, so that no reset starts it again."""
        return self._stopping

    @property
    def ready(self) -> bool:
        """Whether the guest's agent answers."""
        return self._ready.is_set()

    @property
    def machine(self) -> Machine:
        """The machine as the layer below has it; a new one after a reset. Raises StoppedError before the start."""
        if self._machine is None:
            raise StoppedError(f"{self.name} has not been started")
        return self._machine

    def __enter__(self) -> VM:
        try:
            return self.boot()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, kind: object, *reason: object) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()

    def __repr__(self) -> str:
        state = "running" if self.running else "new" if self._thread is None else f"ended with {self.exit_code}"
        return f"<VM {self.name}: {self.config.memory >> 20} MiB, {self.config.cpus} harts, {state}>"

    @cached_property
    def hooks(self) -> Hooks:
        """Functions that the harts call while they execute: see :class:`~polyvisor.vm.hooks.Hooks`."""
        from .hooks import Hooks  # not before: it loads what compiles
        return Hooks(self)

    def record(self, path: str | os.PathLike[str], *, seed: int | None = None) -> None:
        """Record it to a file from now on, in virtual time; with ``seed``, random numbers and schedule are others now.

        The recording begins with all that is in the machine. Raises VMError, and RecordingError.
        """
        began = self.begin_recording(path, seed)
        while not began.wait(0.05):
            if self._ended.is_set():
                raise StoppedError(f"{self.name} ended before its recording began")
        self._recording.check()

    def begin_recording(self, path: str | os.PathLike[str], seed: int | None) -> threading.Event:
        """The same, for who does not wait until it has begun; gives what tells."""
        return self._recording.begin_now(self, path, seed)

    # Looking inside

    @property
    def cpu(self) -> Sequence[CpuView]:
        """The harts: ``vm.cpu[0].pc``, ``vm.cpu[0].x["a0"]``."""
        allowed = self._recording.may_change
        return [CpuView(partial(self._hart, number), self.paused, allowed) for number in range(self.config.cpus)]

    def _hart(self, number: int) -> Any:
        return self.machine.board.harts[number]

    def _virtual(self, cpu: int = 0) -> VirtualMemory:
        hart, allowed = partial(self._hart, cpu), self._recording.may_change
        return VirtualMemory(lambda: self.machine.board.memory, hart, self.paused, allowed)

    @property
    def symbols(self) -> Symbols:
        """Names and virtual addresses: a program's own, or those of the running kernel (by its agent, as root).

        The kernel's are read once, not while the machine stands still; those of modules that come later are missing.
        """
        if self._symbols is None:
            program = self.machine.board.program
            if program is not None:
                self._symbols = Symbols(program.symbols)
            elif self._still_for:
                raise VMError(f"{self.name} stands still: read its symbols before that")
            else:
                text = self.run("echo 0 > /proc/sys/kernel/kptr_restrict; cat /proc/kallsyms", check=True).stdout
                self._symbols = Symbols.from_kallsyms(text)
        return self._symbols

    def pause(self) -> None:
        """Make all harts stand still; as often as this was called, :meth:`resume` must be."""
        self.machine.check_thread()  # before the lock: who has it may wait for this hart
        with self._still:
            if self._still_for == 0:
                self.machine.pause()
            self._still_for += 1

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        with self._still:
            if self._still_for == 0:
                raise VMError(f"{self.name} does not stand still")
            self._still_for -= 1
            if self._still_for == 0:
                self.machine.resume()

    @contextlib.contextmanager
    def paused(self) -> Iterator[VM]:
        """Stand still for a block."""
        self.pause()
        try:
            yield self
        finally:
            self.resume()

    # Snapshots

    def snapshot(
        self, name: str | os.PathLike[str], *, base: str | os.PathLike[str] | Snapshot | bool | None = None
    ) -> Snapshot:
        """Save the whole machine under a name, or in a file: see docs/snapshots.md. It stands still meanwhile.

        ``base``: the snapshot that the machine went on from, which was taken last or which it was restored from, or
        True for that: then only what changed since is saved, and that one is needed too. What had the name before is
        replaced when all is certain to survive a crash. Raises SnapshotError.
        """
        from .snapshot import store
        from .snapshot.take import find_base, take

        path = store.path_of(name)
        with self._snapshots:
            store.check_free(path)
            with self.paused():
                if not self.running:
                    raise SnapshotError(f"{self.name} is not running")
                taken = take(self, self.machine, path, find_base(base, self._last, path))
                self._last = None
            snapshot = taken.save()
            self._last = taken.reached
            return snapshot

    @classmethod
    def restore(cls, snapshot: str | os.PathLike[str], /, *, timeout: float | None = 120.0, **options: Any) -> VM:
        """A machine that goes on from a snapshot, running, as it was: its agent answers if it did then.

        Options: ``name``; ``networks``, what each of the cards is plugged into now, if not what it was; ``shares``
        likewise; ``devices``, if it had any; ``display``, ``on_output``, ``progress``. What the guest writes to its
        disks is thrown away at the end. The snapshot stays as it is, and any number of machines can be made of it.
        Raises SnapshotError, and OSError and ValueError for what the host cannot give.
        """
        with Lasting():
            from .snapshot.restore import restored_vm

            vm, was_ready = restored_vm(snapshot, timeout=timeout, **options)
        try:
            return vm.boot() if was_ready else vm.start()
        except BaseException:
            vm.kill()
            raise

    def fork(
        self, count: int = 1, *, hostname: str | None = None, new_macs: bool = False, reseed: bool = True,
        seed: int | None = None,
    ) -> list[Fork]:
        """``count`` machines that go on from where this one is, each in a process of its own: see docs/forks.md.

        They share memory, compiled code and disks with this one until someone writes. ``hostname`` is given to the
        guests, with the number of each, from 0, in the place of ``{}``; ``new_macs``: their cards get other addresses;
        ``reseed``: the kernel's random numbers are others in each, and follow from ``seed`` if there is one. Those
        need an agent, which does that before a fork is ready. Raises ForkError if the machine has what cannot be
        shared, and OSError for what the host cannot give.
        """
        from .forks.start import fork

        return fork(self, count, hostname, new_macs, reseed, seed)

    @property
    def all_disks(self) -> list[Disk]:
        """The disks that it was described with, the root disk first."""
        return [*((self._root.disk,) if self._root is not None else ()), *self.disks]

    # Inside

    @contextlib.contextmanager
    def copying(self, group: bool = False) -> Iterator[None]:
        """Stand still, and let no thread hold anything that a copy of the process would need (``os.fork``).

        ``group``: all machines of its group are copied, too. Raises ForkError if the machine has what a copy cannot
        have, too.
        """
        from .snapshot.machine_state import at_rest

        with self.paused(), self._snapshots, contextlib.ExitStack() as held:
            if not self.running:
                raise ForkError(f"{self.name} is not running")
            self._recording.may_fork(group)
            for disk in self.all_disks:
                if obstacle := disk.obstacle():
                    raise ForkError(f"no fork can be made: {obstacle}")
            board = self.machine.board
            if board.regions is not None:
                held.enter_context(board.regions.lock)
            if board.code is not None and board.pages is not None:
                held.enter_context(board.code.still())
                held.enter_context(board.pages.lock)
            try:
                held.enter_context(at_rest(self.machine))
            except SnapshotError as error:
                raise ForkError(str(error).replace("snapshot can be taken", "fork can be made")) from error
            held.enter_context(self.console.still())
            held.enter_context(self.events.still())
            board.memory.make_private()
            if board.regions is not None:
                board.regions.arena.share()
            for disk in self.all_disks:
                disk.branch()
            self._last = None
            yield

    def revive(self, first: bool = True) -> None:
        """Be ready to go on in a copy of the process, still within :meth:`copying`.

        Nothing is opened or started: that process may be copied again, and :meth:`part` is for the copies. ``first``:
        of the machines in the process.
        """
        self._starting, self._still = threading.Lock(), threading.RLock()
        self._snapshots = threading.Lock()
        self._ready, self._ended = threading.Event(), threading.Event()
        self._greeted = self._greeting = False
        self.__dict__.pop("client", None)  # its connections are the other process's
        self.on_machine.clear()
        self.console.revive()
        self.events.revive()
        self.machine.revive(first)

    def part(self, identify: Callable[[], None]) -> None:
        """After that: have what no other copy has; ``identify`` is called when there is an agent.

        Raises OSError for what the host cannot give.
        """
        self._identify = identify
        for disk in self.all_disks:
            disk.branch()
        for nic in self.networks:
            nic.revive()
        self.machine.board.rtc.rearm()

    def release(self) -> None:
        """After that, while it stands still: go on when it is resumed, whoever made it stand still."""
        self._still_for = 1

    def revived(self) -> None:
        """After that, when it goes on again."""
        self.machine.revived()
        self._thread = threading.Thread(target=self._live, name=f"life of {self.name}", daemon=True)
        self._thread.start()
        self.events.emit("started")

    def _type(self, data: bytes) -> int:
        return self._machine.send(data) if self._machine is not None else 0

    def _make_sockets(self) -> VsockDevice:
        device = VsockDevice()
        device.listen(protocol.PORT, self._hello)
        self._sockets = device
        return device

    def _hello(self, stream: Stream) -> None:
        """The agent is there; called with the device's lock held."""

        def changed() -> None:
            if stream.take_received() and not self._greeted:
                self._greeted = True
                # In a thread of its own: it asks the guest for something, as may those who listen.
                threading.Thread(target=self._greet, name=f"greeting {self.name}", daemon=True).start()

        stream.on_change = changed

    def _reseed(self) -> None:
        """Let the guest's random numbers be others than those of machines that had the same state."""
        self.client.reseed(os.urandom(64), timeout=10)

    def _greet(self) -> None:
        """Prepare the guest, then say that it is ready."""
        with contextlib.suppress(OSError, VMError):
            if self._identify is not None:
                self._identify()
            for nic in self.networks if self._greeting else ():
                if nic.address is not None:
                    self.client.run(SET_ADDRESS, env={"MAC": nic.mac, "ADDRESS": nic.address}, timeout=10)
        self._ready.set()
        self.events.emit("ready")

    def open_agent(self, timeout: float | None = None) -> Stream:
        """A new connection to the guest's agent; waits until there is one. See :mod:`polyvisor.guest.protocol`."""
        if not self.software.agent:
            raise VMError(f"{self.name} has no agent to ask: use an image, or agent=True and start /polyvisor/agent")
        if not self.running or self._sockets is None:
            raise StoppedError(f"{self.name} is not running")
        if not self._greeted:
            self.wait_ready(timeout)
        return self._sockets.open(protocol.PORT)

    def _circumstances(self) -> str:
        self._ended.wait(0.2)
        self._raise_failure()
        how = "it has ended" if self._ended.is_set() else "its agent is gone"
        return f": {how}; the console ends:\n{self.console.tail()}"

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
