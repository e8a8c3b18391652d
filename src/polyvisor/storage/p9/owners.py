"""Whom the files of a share belong to: two ways to bring the host's owners and the guest's together.

Everything here works on descriptors opened with O_PATH as well, by way of /proc/self/fd: such a path leads to the very
file that is open, and no further even if that is a symbolic link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

OWNERS = ("guest", "host")

PRIVATE = b"user.polyvisor."
"""Extended attributes with this prefix are ours: clients neither see nor change them."""
_RECORD = PRIVATE + b"owner"
_RECORD_FORM = re.compile(rb"uid=(\d{1,10}) gid=(\d{1,10}) mode=([0-7]{1,6}) rdev=(\d{1,8}):(\d{1,8})")
_NO_RECORD = (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
# What an empty regular file may stand for; 0: for itself.
_HIDDEN_KINDS = (0, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_MAX_ID = 2**32 - 1


def proc_path(fd: int) -> str:
    """A path to the file open as ``fd``, whatever became of its name."""
    return f"/proc/self/fd/{fd}"


@dataclass(frozen=True)
class Owned:
    """What the client is told of a file's kind, permissions and owner; the device's numbers of a device node."""

    mode: int
    uid: int
    gid: int
    major: int = 0
    minor: int = 0


class HostOwners:
    """The host's own owners and modes are shown, and changed as far as the host allows it."""

    def show(self, fd: int, found: os.stat_result) -> Owned:
        """What to tell of the file ``fd``, whose fstat is ``found``. Raises OSError."""
        numbers = (os.major(found.st_rdev), os.minor(found.st_rdev))
        return Owned(found.st_mode, found.st_uid, found.st_gid, *numbers)

    def hidden_kind(self, path: bytes) -> int:
        """The S_IF... of the special file that the regular file at ``path`` (not followed) stands for; 0 if none."""
        return 0

    def node_kind(self, mode: int) -> int:
        """The S_IF... of what to make on the host for a node of ``mode``. Raises OSError if it may not be made."""
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            # It would be a way to the host's devices for whoever may write to the share.
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return stat.S_IFMT(mode)

    def first_mode(self, mode: int, uid: int, gid: int) -> int:
        """The permissions to make a file with, before :meth:`made` sets the final ones."""
        return mode & 0o777

    def made(self, fd: int, owned: Owned) -> None:
        """Give a new file its permissions and owner. Raises OSError."""
        if os.geteuid() == 0:
            os.chown(proc_path(fd), owned.uid, owned.gid)
        else:
            # Not ours to give away; the group may be one of ours.
            with contextlib.suppress(PermissionError):
                os.chown(proc_path(fd), -1, owned.gid)
        if not stat.S_ISLNK(owned.mode):
            Path(proc_path(fd)).chmod(stat.S_IMODE(owned.mode))

    def change(self, fd: int, found: os.stat_result, mode: int | None, uid: int | None, gid: int | None) -> None:
        """Change permissions and owner; None leaves one as it is. Raises OSError."""
        if uid is not None or gid is not None:
            os.chown(proc_path(fd), -1 if uid is None else uid, -1 if gid is None else gid)
        if mode is not None:
            Path(proc_path(fd)).chmod(stat.S_IMODE(mode))


class GuestOwners:
    """Everything is root's in the guest, until the guest gives it to someone else: that is kept beside the file.

    Permissions are the host's own. What the host would not let a user do, or what would be a danger there, is written
    to an extended attribute: another owner than root, the set-id and sticky bits, and which special file an empty
    regular file stands for. Set-id bits that a file has on the host are not shown: its owner there is not the one shown
    here. Symbolic links and real special files cannot have the attribute, so they stay root's.
    """

    def show(self, fd: int, found: os.stat_result) -> Owned:
        """As in HostOwners."""
        mode = found.st_mode & ~_SPECIAL_BITS
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return Owned(mode, 0, 0, os.major(found.st_rdev), os.minor(found.st_rdev))
        record = self._read(os.fsencode(proc_path(fd)), True)
        if record is None:
            return Owned(mode, 0, 0)
        kind = stat.S_IFMT(record.mode) if stat.S_ISREG(mode) else 0
        mode = (kind or stat.S_IFMT(mode)) | record.mode & _SPECIAL_BITS | stat.S_IMODE(mode)
        return Owned(mode, record.uid, record.gid, record.major, record.minor)

    def hidden_kind(self, path: bytes) -> int:
        """As in HostOwners."""
        record = self._read(path, False)
        return stat.S_IFMT(record.mode) if record else 0

    def node_kind(self, mode: int) -> int:
        """As in HostOwners."""
        return stat.S_IFREG

    def first_mode(self, mode: int, uid: int, gid: int) -> int:
        """As in HostOwners. Writing the attribute takes the right to write the file."""
        return mode & 0o777 | (0o600 if uid or gid or mode & _SPECIAL_BITS or not stat.S_ISREG(mode) else 0)

    def made(self, fd: int, owned: Owned) -> None:
        """As in HostOwners."""
        if stat.S_ISLNK(owned.mode):
            return
        self._write(fd, owned)
        found = os.fstat(fd)
        wanted = self._host_mode(found, owned.mode)
        if wanted != stat.S_IMODE(found.st_mode):
            Path(proc_path(fd)).chmod(wanted)

    def change(self, fd: int, found: os.stat_result, mode: int | None, uid: int | None, gid: int | None) -> None:
        """As in HostOwners. The owner of a symbolic link or a real special file is left alone, which is no error."""
        before = self.show(fd, found)
        after = Owned(
            before.mode if mode is None else stat.S_IFMT(before.mode) | stat.S_IMODE(mode),
            before.uid if uid is None else uid,
            before.gid if gid is None else gid,
            before.major,
            before.minor,
        )
        if (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)) and after != before:
            self._write(fd, after)
        if mode is not None:
            Path(proc_path(fd)).chmod(self._host_mode(found, mode))

    @staticmethod
    def _host_mode(found: os.stat_result, mode: int) -> int:
        """Permissions as asked; a directory keeps the set-group-id and sticky bits it has on the host."""
        kept = stat.S_IMODE(found.st_mode) & _SPECIAL_BITS if stat.S_ISDIR(found.st_mode) else 0
        return mode & 0o777 | kept

    @staticmethod
    def _read(path: bytes, follow: bool) -> Owned | None:
        """The record of a file; None if there is none that makes sense. Raises OSError."""
        try:
            value = os.getxattr(path, _RECORD, follow_symlinks=follow)
        except OSError as error:
            if error.errno in _NO_RECORD:
                return None
            raise
        match = _RECORD_FORM.fullmatch(value)
        if match is None:
            return None
        uid, gid, mode, major, minor = (int(text, 8 if i == 2 else 10) for i, text in enumerate(match.groups()))
        if max(uid, gid) > _MAX_ID or stat.S_IFMT(mode) not in _HIDDEN_KINDS:
            return None
        return Owned(mode, uid, gid, major, minor)

    @staticmethod
    def _write(fd: int, owned: Owned) -> None:
        """Keep what differs from a plain file of root's. Raises OSError: EPERM if the file system has no attributes."""
        plain = stat.S_ISREG(owned.mode) or stat.S_ISDIR(owned.mode)
        mode = owned.mode & _SPECIAL_BITS | (0 if plain else stat.S_IFMT(owned.mode))
        if not mode and not owned.uid and not owned.gid:
            if GuestOwners._read(os.fsencode(proc_path(fd)), True) is not None:
                os.removexattr(proc_path(fd), _RECORD)
            return
        text = f"uid={owned.uid} gid={owned.gid} mode={mode:o} rdev={owned.major}:{owned.minor}"
        try:
            os.setxattr(proc_path(fd), _RECORD, text.encode())
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from None
            raise


Owners = HostOwners | GuestOwners
