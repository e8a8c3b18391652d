"""The file system device (VIRTIO 1.2, section 5.11): a directory that virtiofsd shares with the guest.

Requests are FUSE messages, which only virtiofsd, a vhost-user back end, understands.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from polyvisor.devices.virtio.p9 import ShareError, check_tag
from polyvisor.devices.virtio.queue import Chain, gather, length_of, scatter, split
from polyvisor.devices.virtio.vhost_backend import BackEnd, BackEndProcess, ListeningBackEnd
from polyvisor.devices.virtio.vhost_user import VhostUserDevice, VhostUserError

__all__ = ["ShareError", "VhostUserError", "VirtioFsDevice", "find_virtiofsd"]

HIGH_PRIORITY_QUEUE_SIZE = 128
REQUEST_QUEUE_SIZE = 1024
MAX_TAG = 36
MAX_REQUEST_QUEUES = 64

# struct virtio_fs_config (5.11.4) without what belongs to the notification queue.
_CONFIG = struct.Struct("<36sI")
# The start of struct fuse_in_header (length, opcode, unique), and struct fuse_out_header (length, error, unique).
_IN_HEADER = struct.Struct("<IIQ")
_OUT_HEADER = struct.Struct("<IiQ")

# Where distributions put it: not in the path, as people do not start it themselves.
_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd")
_HELP_SECONDS = 10.0
# Runs a command that sees the directory as one that cannot be written; mounts below it are not there.
_READ_ONLY = 'mount --bind -- "$1" "$1" && mount -o remount,bind,ro -- "$1" && shift && exec "$@"'


def find_virtiofsd() -> str:
    """The program, where it is installed; the newer one, written in Rust, if both are. Raises ShareError."""
    found = [path for path in (shutil.which("virtiofsd"), *_PLACES) if path and os.access(path, os.X_OK)]
    if not found:
        raise ShareError("sharing by virtio-fs needs virtiofsd: install the package virtiofsd")
    return found[0]


def _options_of(program: str) -> str:
    """What it says of its options. Raises ShareError."""
    try:
        done = subprocess.run(
            [program, "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_HELP_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ShareError(f"{program}: cannot be started ({error})") from error
    return done.stdout + done.stderr


def command_line(program: str, directory: str, read_only: bool, options: Sequence[str] = ()) -> list[str]:
    """How ``program``, either of the two called virtiofsd, shares ``directory``, a full path. Raises ShareError."""
    known = _options_of(program)
    command = [program]
    if "--shared-dir" in known:
        command += [f"--shared-dir={directory}", "--log-level=error"]
        if read_only and "--readonly" in known:
            command.append("--readonly")
            read_only = False
    else:
        if os.geteuid():
            raise ShareError(f"{program} needs root; that of the package virtiofsd (Debian 13 or newer) does not")
        escaped = directory.replace("\\", "\\\\").replace(",", "\\,")
        command += ["-o", f"source={escaped}", "-o", "log_level=err"]
    command += options
    if not read_only:
        return command
    if os.geteuid():
        raise ShareError(f"{program} cannot share read-only, except for root: use a newer one")
    return ["unshare", "--mount", "--", "sh", "-c", _READ_ONLY, "sh", directory, *command]


class VirtioFsDevice(VhostUserDevice):
    """The directory that a virtiofsd shares; the guest mounts it by ``tag``.

    When virtiofsd is gone, all requests fail with ENOTCONN.
    """

    device_id = 26
    passed_features = 0

    def __init__(
        self, back_end: str | os.PathLike[str] | BackEnd, tag: str = "host", *, request_queues: int = 1
    ) -> None:
        """``back_end``: the Unix socket where a virtiofsd listens, or where else one comes from; the device closes it.

        Raises VhostUserError or ShareError, which are OSErrors with a line for the user, or ValueError for a number of
        queues that is not 1 to 64.
        """
        check_tag(tag, MAX_TAG)
        if not 1 <= request_queues <= MAX_REQUEST_QUEUES:
            raise ValueError(f"{request_queues} request queues; 1 to {MAX_REQUEST_QUEUES} are possible")
        self.tag = tag
        self._fs_config = _CONFIG.pack(tag.encode("ascii"), request_queues)
        if isinstance(back_end, str | os.PathLike):
            back_end = ListeningBackEnd(back_end)
        super().__init__(back_end, (HIGH_PRIORITY_QUEUE_SIZE, *(REQUEST_QUEUE_SIZE,) * request_queues))

    @classmethod
    def spawn(
        cls, directory: str | os.PathLike[str], tag: str = "host", read_only: bool = False, *,
        program: str | None = None, options: Sequence[str] = (),
    ) -> Self:
        """A device with a virtiofsd of its own for ``directory``, which ends with the device.

        ``program``: which one, instead of that which is installed; ``options``: more for its command line. Raises
        ShareError or VhostUserError, OSErrors with a line for the user.
        """
        check_tag(tag, MAX_TAG)
        path = Path(directory).absolute()
        if not path.is_dir():
            raise ShareError(f"{os.fspath(directory)!r} is not a directory")
        command = command_line(program or find_virtiofsd(), str(path), read_only, options)
        return cls(BackEndProcess("virtiofsd", command), tag)

    def config(self) -> bytes:
        """struct virtio_fs_config up to ``num_request_queues``."""
        return self._fs_config

    def obstacle(self) -> str | None:
        """What the guest has open is known to virtiofsd alone."""
        return f"the directory shared as {self.tag!r} is shared by virtio-fs, which cannot be saved: share it by 9P"

    def refuse(self, chain: Chain) -> int:
        """Answer that there is no connection, unless the request is of a kind that has no answer."""
        memory = self.link.memory
        header = gather(memory, split(chain.readable, _IN_HEADER.size)[0])
        if len(header) < _IN_HEADER.size or length_of(chain.writable) < _OUT_HEADER.size:
            return 0
        unique = _IN_HEADER.unpack(header)[2]
        return scatter(memory, chain.writable, _OUT_HEADER.pack(_OUT_HEADER.size, -errno.ENOTCONN, unique))
