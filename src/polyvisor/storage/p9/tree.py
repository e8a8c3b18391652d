"""The shared directory: every operation on the host's files, none of which can leave it.

A file is known by a descriptor, most of them opened with O_PATH. A name is looked up alone, in the directory that a
descriptor is open on, and never followed if it is a symbolic link: so no path is ever resolved that a client, or anyone
who renames things meanwhile, could bend. (For single names openat2(2) with RESOLVE_BENEATH would refuse nothing more.)
Files are opened for reading and writing from their O_PATH descriptors, after a look at their kind: a FIFO, a socket or
a device of the host is never opened.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from polyvisor.storage.raw import reason

from . import descriptors
from .directory import Entry, entries
from .errors import ShareError
from .messages import MAX_NAME
from .owners import OWNERS, PRIVATE, GuestOwners, HostOwners, Owned, Owners, proc_path

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO is never opened; should a file system disagree on what one is, nothing waits.
_SAFE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_ATTEMPTS = 8
_LARGEST = 2**63 - 1
_IOV_MAX = 1024


def fail(number: int) -> OSError:
    """The OSError with this number."""
    return OSError(number, os.strerror(number))


def check_name(name: bytes) -> bytes:
    """``name`` if it can be that of a file in a directory. Raises OSError."""
    if not name or name in (b".", b".."):
        raise fail(errno.EINVAL)
    if b"/" in name or b"\0" in name:
        raise fail(errno.EINVAL)
    if len(name) > MAX_NAME:
        raise fail(errno.ENAMETOOLONG)
    return name


def give(fd: int) -> None:
    """Close a descriptor that a :class:`Tree` gave."""
    descriptors.give(fd)


class Tree:
    """The files below an open directory. What is returned as a descriptor is the caller's, to :func:`give` back.

    Names are bytes, and checked here. All methods raise OSError; when ``read_only``, those that change something EROFS.
    Whoever runs this needs /proc. Directories mounted inside the tree, and hard links into it, belong to it.
    """

    def __init__(self, root: int, read_only: bool, owners: Owners) -> None:
        """``root`` is a descriptor from :mod:`descriptors`, which the tree gives back."""
        self.root = root
        self.read_only = read_only
        self.owners = owners
        found = os.fstat(root)
        self._device = found.st_dev

    @classmethod
    def at(cls, path: str | os.PathLike[str], read_only: bool, owner: str) -> Self:
        """The tree at the directory ``path``; ``owner`` is "guest" or "host". Raises ShareError."""
        name = os.fspath(path)
        if owner not in OWNERS:
            raise ShareError(f"{name}: there is no owner {owner!r}; there are {', '.join(OWNERS)}")
        try:
            descriptors.raise_limit()
            root = descriptors.take(lambda: os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except NotADirectoryError:
            raise ShareError(f"{name}: is not a directory") from None
        except (OSError, ValueError) as error:
            raise ShareError(f"{name}: cannot share the directory: {reason(error)}") from error
        if not Path(proc_path(root)).exists():
            give(root)
            raise ShareError(f"{name}: cannot share the directory: /proc is not mounted here")
        if not os.access(proc_path(root), os.R_OK | os.X_OK):
            give(root)
            raise ShareError(f"{name}: cannot share the directory: no permission to read it")
        return cls(root, read_only, HostOwners() if owner == "host" else GuestOwners())

    def close(self) -> None:
        """Give the root back; may be repeated."""
        if self.root >= 0:
            give(self.root)
            self.root = -1

    def number(self, found: os.stat_result) -> int:
        """A number for the file of which ``found`` is the fstat, unlike that of any other in the tree."""
        if found.st_dev == self._device:
            return found.st_ino
        digest = hashlib.blake2b(b"%d %d" % (found.st_dev, found.st_ino), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def is_root(self, fd: int) -> bool:
        """Whether ``fd`` is open on the shared directory itself."""
        return os.path.samestat(os.fstat(fd), os.fstat(self.root))

    def _writable(self) -> None:
        if self.read_only:
            raise fail(errno.EROFS)

    # Looking up

    def look(self, directory: int, name: bytes) -> int:
        """An O_PATH descriptor of ``name``. ``..`` is the parent, in the shared directory itself that directory."""
        if name == b"..":
            if not stat.S_ISDIR(os.fstat(directory).st_mode):
                raise fail(errno.ENOTDIR)
            return self.copy(self.root) if self.is_root(directory) else self._parent(directory)[0]
        check_name(name)
        return descriptors.take(lambda: os.open(name, _LOOK, dir_fd=directory))

    def copy(self, fd: int) -> int:
        """Another O_PATH descriptor of the same file."""
        return descriptors.take(lambda: os.open(proc_path(fd), os.O_PATH | os.O_CLOEXEC))

    def names(self, fd: int) -> tuple[bytes, ...]:
        """The path from the root to ``fd`` as the host sees it now: a hint, to be looked up and compared."""
        root = os.fsencode(Path(proc_path(self.root)).readlink()).rstrip(b"/")
        path = os.fsencode(Path(proc_path(fd)).readlink())
        if path == root or path == root + b"/":
            return ()
        if not path.startswith(root + b"/"):
            raise fail(errno.ENOENT)
        return tuple(path[len(root) + 1 :].split(b"/"))

    def find(self, names: tuple[bytes, ...]) -> int:
        """An O_PATH descriptor of what ``names`` lead to from the root, one after the other."""
        fd = self.copy(self.root)
        for name in names:
            try:
                found = self.look(fd, check_name(name))
            finally:
                give(fd)
            fd = found
        return fd

    def _parent(self, fd: int) -> tuple[int, bytes]:
        """The directory that ``fd`` is in, and its name there. ENOENT if it has none any more."""
        names = self.names(fd)
        if not names:
            raise fail(errno.EBUSY)
        directory = self.find(names[:-1])
        try:
            there = os.stat(names[-1], dir_fd=directory, follow_symlinks=False)
            if not os.path.samestat(there, os.fstat(fd)):
                raise fail(errno.ENOENT)
        except BaseException:
            give(directory)
            raise
        return directory, names[-1]

    # Files

    def open(self, fd: int, access: int, truncate: bool = False, sync: int = 0) -> int:
        """Open a file or directory; ``access`` is O_RDONLY, O_WRONLY or O_RDWR, ``sync`` O_SYNC, O_DSYNC or 0."""
        if access != os.O_RDONLY or truncate:
            self._writable()
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            if access != os.O_RDONLY or truncate:
                raise fail(errno.EISDIR)
            flags = os.O_DIRECTORY
        elif stat.S_ISLNK(mode):
            raise fail(errno.ELOOP)
        elif not stat.S_ISREG(mode):
            raise fail(errno.EOPNOTSUPP)
        else:
            flags = access | sync | (os.O_TRUNC if truncate else 0)
        flags |= _SAFE & ~os.O_NOFOLLOW
        return descriptors.take(lambda: os.open(proc_path(fd), flags))

    def create(
        self, directory: int, name: bytes, access: int, owned: Owned, *, exclusive: bool, truncate: bool, sync: int
    ) -> int:
        """Make a regular file and open it; unless ``exclusive``, open the one that is there already."""
        self._writable()
        check_name(name)
        first = self.owners.first_mode(owned.mode, owned.uid, owned.gid)
        for _ in range(_ATTEMPTS):
            flags = access | sync | os.O_CREAT | os.O_EXCL | _SAFE
            try:
                fd = descriptors.take(lambda flags=flags: os.open(name, flags, first, dir_fd=directory))  # type: ignore[misc]
            except FileExistsError:
                if exclusive:
                    raise
            else:
                with self._undo(directory, name, fd):
                    self.owners.made(fd, owned)
                return fd
            with contextlib.suppress(FileNotFoundError):
                found = self.look(directory, name)
                try:
                    return self.open(found, access, truncate, sync)
                finally:
                    give(found)
        raise fail(errno.EBUSY)

    @contextlib.contextmanager
    def _undo(self, directory: int, name: bytes, fd: int) -> Iterator[None]:
        """Remove what was just made if it cannot be finished."""
        try:
            yield
        except BaseException:
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            give(fd)
            with contextlib.suppress(OSError):
                (os.rmdir if is_directory else os.unlink)(name, dir_fd=directory)
            raise

    def read(self, fd: int, views: list[memoryview], offset: int) -> int:
        """Fill ``views`` from ``offset`` on; returns how many bytes there were."""
        if offset + sum(map(len, views)) > _LARGEST:
            return 0 if offset > _LARGEST else os.preadv(fd, [views[0][: _LARGEST - offset]], offset)
        return os.preadv(fd, views[:_IOV_MAX], offset) if views else 0

    def write(self, fd: int, views: list[memoryview], offset: int) -> int:
        """Write ``views`` to ``offset`` on; returns how many bytes could be."""
        if offset + sum(map(len, views)) > _LARGEST:
            raise fail(errno.EFBIG)
        return os.pwritev(fd, views[:_IOV_MAX], offset) if views else 0

    def sync(self, fd: int, data_only: bool) -> None:
        """Make what was written survive a crash of the host."""
        (os.fdatasync if data_only else os.fsync)(fd)

    # Attributes

    def owned(self, fd: int, found: os.stat_result) -> Owned:
        """Kind, permissions and owner to show."""
        return self.owners.show(fd, found)

    def set_owned(self, fd: int, mode: int | None, uid: int | None, gid: int | None) -> None:
        """Change permissions and owner; None leaves one alone."""
        self._writable()
        found = os.fstat(fd)
        if mode is not None and stat.S_ISLNK(found.st_mode):
            raise fail(errno.EOPNOTSUPP)
        self.owners.change(fd, found, mode, uid, gid)

    def truncate(self, fd: int, opened_to_write: bool, size: int) -> None:
        """Set the size of a regular file."""
        self._writable()
        if size > _LARGEST:
            raise fail(errno.EFBIG)
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise fail(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL)
        if opened_to_write:
            os.ftruncate(fd, size)
        else:
            os.truncate(proc_path(fd), size)

    def set_times(self, fd: int, accessed: int | None, modified: int | None) -> None:
        """Set times, in nanoseconds; None leaves one alone."""
        self._writable()
        found = os.fstat(fd)
        times = (
            found.st_atime_ns if accessed is None else accessed,
            found.st_mtime_ns if modified is None else modified,
        )
        try:
            os.utime(proc_path(fd), ns=times)
        except OverflowError:
            raise fail(errno.EINVAL) from None

    def touch(self, fd: int) -> None:
        """Set both times to now, which takes less permission than :meth:`set_times`."""
        self._writable()
        os.utime(proc_path(fd))

    def statfs(self, fd: int) -> os.statvfs_result:
        """statvfs(3) of the file system that ``fd`` is on."""
        return os.fstatvfs(fd)

    # Directories

    def entries(self, fd: int, offset: int, room: int) -> list[Entry]:
        """The entries of the open directory ``fd`` from ``offset`` on: those of one read(2) of about ``room`` bytes."""
        if offset > _LARGEST:
            raise fail(errno.EINVAL)
        return entries(fd, offset, room)

    def hidden_kind(self, directory: int, name: bytes) -> int:
        """The S_IF... that a regular file, by name, is to be shown as; 0: as what it is."""
        return self.owners.hidden_kind(os.fsencode(proc_path(directory)) + b"/" + name)

    def mkdir(self, directory: int, name: bytes, owned: Owned) -> int:
        """Make a directory; returns an O_PATH descriptor of it."""
        self._writable()
        first = self.owners.first_mode(owned.mode, owned.uid, owned.gid)
        os.mkdir(check_name(name), first | 0o700, dir_fd=directory)
        return self._finish(directory, name, stat.S_IFDIR, owned)

    def mknod(self, directory: int, name: bytes, owned: Owned) -> int:
        """Make a regular or a special file; returns an O_PATH descriptor of it."""
        self._writable()
        check_name(name)
        kind = self.owners.node_kind(owned.mode)
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
            raise fail(errno.EPERM)
        first = self.owners.first_mode(owned.mode, owned.uid, owned.gid)
        os.mknod(name, kind | first, dir_fd=directory)
        return self._finish(directory, name, kind, owned)

    def symlink(self, directory: int, name: bytes, target: bytes, owned: Owned) -> int:
        """Make a symbolic link, to anywhere: only clients follow it. Returns an O_PATH descriptor of it."""
        self._writable()
        if not target:
            raise fail(errno.ENOENT)
        if b"\0" in target:
            raise fail(errno.EINVAL)
        os.symlink(target, check_name(name), dir_fd=directory)
        return self._finish(directory, name, stat.S_IFLNK, owned)

    def _finish(self, directory: int, name: bytes, kind: int, owned: Owned) -> int:
        fd = self.look(directory, name)
        if stat.S_IFMT(os.fstat(fd).st_mode) != kind:
            give(fd)  # somebody else was here meanwhile
            raise fail(errno.EEXIST)
        with self._undo(directory, name, fd):
            self.owners.made(fd, owned)
        return fd

    def readlink(self, fd: int) -> bytes:
        """Where a symbolic link leads."""
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            raise fail(errno.EINVAL)
        return os.readlink(b"", dir_fd=fd)

    def link(self, fd: int, directory: int, name: bytes) -> None:
        """Give a file another name."""
        self._writable()
        os.link(proc_path(fd), check_name(name), dst_dir_fd=directory, follow_symlinks=True)

    def rename(self, old_directory: int, old: bytes, directory: int, name: bytes) -> None:
        """Rename, replacing what has the new name."""
        self._writable()
        check_name(old)
        os.rename(old, check_name(name), src_dir_fd=old_directory, dst_dir_fd=directory)

    def move(self, fd: int, directory: int, name: bytes) -> None:
        """Rename a file known by its descriptor only."""
        self._writable()
        check_name(name)
        old_directory, old = self._parent(fd)
        try:
            self.rename(old_directory, old, directory, name)
        finally:
            give(old_directory)

    def remove(self, directory: int, name: bytes, is_directory: bool) -> None:
        """Remove an empty directory, or anything else."""
        self._writable()
        (os.rmdir if is_directory else os.unlink)(check_name(name), dir_fd=directory)

    def remove_open(self, fd: int) -> None:
        """Remove a file known by its descriptor only."""
        self._writable()
        directory, name = self._parent(fd)
        try:
            self.remove(directory, name, stat.S_ISDIR(os.fstat(fd).st_mode))
        finally:
            give(directory)

    # Extended attributes

    def _attribute(self, name: bytes) -> bytes:
        if not name or b"\0" in name or len(name) > MAX_NAME:
            raise fail(errno.EINVAL)
        if name.startswith(PRIVATE):
            raise fail(errno.ENODATA)
        if isinstance(self.owners, GuestOwners) and not name.startswith(b"user."):
            # security.capability and the like would have their meaning on the host.
            raise fail(errno.EOPNOTSUPP)
        return name

    def get_attribute(self, fd: int, name: bytes) -> bytes:
        """The value of an extended attribute."""
        return os.getxattr(proc_path(fd), self._attribute(name))

    def list_attributes(self, fd: int) -> bytes:
        """The names of all that may be seen, each ended by NUL."""
        names = map(os.fsencode, os.listxattr(proc_path(fd)))
        guest = isinstance(self.owners, GuestOwners)
        seen = (n for n in names if not n.startswith(PRIVATE) and (not guest or n.startswith(b"user.")))
        return b"".join(name + b"\0" for name in seen)

    def set_attribute(self, fd: int, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute; ``flags`` as in setxattr(2)."""
        self._writable()
        if name.startswith(PRIVATE):
            raise fail(errno.EPERM)
        os.setxattr(proc_path(fd), self._attribute(name), value, flags)

    def remove_attribute(self, fd: int, name: bytes) -> None:
        """Remove an extended attribute."""
        self._writable()
        os.removexattr(proc_path(fd), self._attribute(name))
