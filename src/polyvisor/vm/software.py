"""What a machine runs: a Linux kernel with its parts, or a bare-metal program."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from pathlib import Path

from polyvisor.boards.placing import Data, LoadError
from polyvisor.boards.stored_file import StoredFile
from polyvisor.dataclass import dataclass
from polyvisor.engine.codecache import CodeCache
from polyvisor.engine.objectcode import cache_key, sources_digest
from polyvisor.isa.riscv import rv64

from .machine import Machine

_BLOCK = 512  # newc archives follow each other at multiples of this


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
            more = additions(self.agent, self.our_initrd)
            with ExitStack() as opened:
                kernel = _open(self.kernel, "kernel", opened)
                initrd = _open(self.initrd, "initrd", opened, more) if self.initrd else more
                firmware = read_file(self.firmware, "firmware") if self.firmware else None
                try:
                    machine.board.load_linux(kernel, initrd or None, self.append, firmware)
                except EOFError as error:
                    raise LoadError(f"kernel {str(self.kernel)!r} or its initrd: {error}") from error

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


def _open(path: Path, what: str, opened: ExitStack, tail: bytes = b"") -> Data:
    """A file with something behind it; at a multiple of 512 bytes, as parts of an initramfs are. Raises LoadError."""
    check_file(path, what)
    if not path.is_file():  # a pipe, for example
        data = path.read_bytes()
        return data + bytes(-len(data) % _BLOCK if tail else 0) + tail
    found = opened.enter_context(StoredFile(path))
    found.tail = bytes(-len(found) % _BLOCK if tail else 0) + tail
    return found


@cache
def additions(agent: bool, scripts: bool) -> bytes:
    """What we put behind an initramfs; see :func:`polyvisor.guest.initrd.extend`. It is kept with compiled code."""
    if not agent and not scripts:
        return b""
    import polyvisor.guest
    from polyvisor import images

    kept = CodeCache(cache_key(rv64))
    name = f"initrd {agent} {scripts} {sources_digest([polyvisor.guest, images])}"
    found = kept.get(name)
    if found is None:
        from polyvisor.guest.initrd import extend
        from polyvisor.guest.riscv import RISCV64

        found = extend(b"", agent_for=RISCV64 if agent else None, scripts=scripts)
        kept.put(name, found)
    return found


class FetchLog:
    """Fetching and building images may take minutes; who wants to know reads the log ``polyvisor.images``."""

    def stage(self, text: str) -> None:
        """Something else is being done."""
        import logging

        logging.getLogger("polyvisor.images").info("%s", text)

    def transfer(self, name: str, done: int, total: int) -> None:
        """Some of a file is here; nothing is said of that."""
