"""What a machine runs: a Linux kernel with its parts, or a bare-metal program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polyvisor.boards.loader import LoadError
from polyvisor.guest.initrd import extend
from polyvisor.guest.riscv import RISCV64

from .machine import Machine


@dataclass(frozen=True)
class Software:
    """The files to load. They are read when a machine starts, and not kept: a kernel's bytes are better in the guest's
    memory alone. ``agent``: the guest's initramfs gets our agent too; ``our_initrd``: it is that of an image of ours.
    ``disk``: the raw disk with the root file system, which stays as it is (see :mod:`polyvisor.vm.root_disk`).
    """

    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    firmware: Path | None = None
    program: Path | None = None
    agent: bool = False
    our_initrd: bool = False
    disk: Path | None = None

    def load(self, machine: Machine) -> None:
        """Place it in a machine. Raises LoadError."""
        if self.program is not None:
            machine.board.load_program(read_file(self.program, "program"))
        elif self.kernel is not None:
            initrd = read_file(self.initrd, "initrd") if self.initrd else b""
            initrd = extend(initrd, agent_for=RISCV64 if self.agent else None, scripts=self.our_initrd)
            machine.board.load_linux(
                read_file(self.kernel, "kernel"), initrd or None, self.append,
                read_file(self.firmware, "firmware") if self.firmware else None,
            )

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return str(self.program or self.kernel)


def check_file(path: Path, what: str) -> None:
    """Raise LoadError, with a line for the user, unless the file can be opened."""
    try:
        with path.open("rb"):
            return
    except FileNotFoundError:
        raise LoadError(f"{what} {str(path)!r}: there is no such file") from None
    except IsADirectoryError:
        raise LoadError(f"{what} {str(path)!r} is a directory, not a file") from None
    except OSError as error:
        raise LoadError(f"{what} {str(path)!r}: {error.strerror}") from error


def read_file(path: Path, what: str) -> bytes:
    """A file's bytes. Raises LoadError."""
    check_file(path, what)
    return path.read_bytes()
