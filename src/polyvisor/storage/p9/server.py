"""A server of 9P2000.L for one client (intro(5); protocol.md of diod): requests in, replies out, one at a time.

The client is not trusted: whatever it sends is answered, with an error if need be, and it can name no more than its
share of the process's descriptors. Requests are done at once, on the caller's thread; a host whose files are slow lets
the client wait. Only a lock that another owner has is waited for beside other requests, and can be given up by Tflush.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import NamedTuple

from . import messages as m
from .fids import Attribute, Fid, Fids, SessionState, Waiting, open_modes
from .locks import END, Range
from .messages import Fields, MalformedError, Type
from .owners import Owned
from .tree import Tree, fail, give
from .views import front, part, put

MAX_MESSAGE = 1 << 20
"""The largest msize: bytes of one message."""
LEAST_MESSAGE = 512
MAX_ATTRIBUTE = 1 << 16
"""Bytes of an extended attribute's value; Linux's XATTR_SIZE_MAX."""

_READ_AT = m.HEADER.size + m.READ.size
_FILE_SYSTEM = 0x01021997  # V9FS_MAGIC
_U64 = 2**64 - 1
_NANO = 1_000_000_000


class Done(NamedTuple):
    """What became of a request."""

    length: int
    """Bytes of the reply."""
    touched: int
    """Bytes from the start of the room for it that may have changed."""
    waiting: int | None = None
    """The tag of a request that is answered later, by :meth:`Server.ready`."""


class _WaitError(Exception):
    """The request is to be answered later."""


class Server:
    """Serves ``tree``, which it closes with itself, to one client."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._message_size = 0
        self._fids = Fids(tree)
        self._locks = self._fids.locks
        self._waiting: dict[int, Waiting] = {}
        self._tag = 0
        self._handlers: dict[int, Callable[[Fields], bytes]] = {
            Type.TSTATFS: self._statfs,
            Type.TLOPEN: self._lopen,
            Type.TLCREATE: self._lcreate,
            Type.TSYMLINK: self._symlink,
            Type.TMKNOD: self._mknod,
            Type.TRENAME: self._rename,
            Type.TREADLINK: self._readlink,
            Type.TGETATTR: self._getattr,
            Type.TSETATTR: self._setattr,
            Type.TXATTRWALK: self._xattrwalk,
            Type.TXATTRCREATE: self._xattrcreate,
            Type.TFSYNC: self._fsync,
            Type.TLOCK: self._lock,
            Type.TGETLOCK: self._getlock,
            Type.TLINK: self._link,
            Type.TMKDIR: self._mkdir,
            Type.TRENAMEAT: self._renameat,
            Type.TUNLINKAT: self._unlinkat,
            Type.TVERSION: self._version,
            Type.TAUTH: self._auth,
            Type.TATTACH: self._attach,
            Type.TFLUSH: self._flush,
            Type.TWALK: self._walk,
            Type.TCLUNK: self._clunk,
            Type.TREMOVE: self._remove,
        }

    def close(self) -> None:
        """Close all files, and the tree."""
        self.reset()
        self.tree.close()

    def reset(self) -> None:
        """Forget the client, and what it waits for."""
        self._fids.clear()
        self._waiting.clear()
        self._message_size = 0

    def save(self) -> SessionState:
        """What the client has open, by names, and the locks it holds."""
        state = SessionState(self._message_size, waiting=dict(self._waiting))
        self._fids.save(state)
        return state

    def restore(self, state: SessionState) -> None:
        """Open again what ``state`` names. A fid whose file is gone answers ESTALE from then on."""
        self._waiting = dict(state.waiting)
        self._message_size = min(state.message_size, MAX_MESSAGE)
        self._fids.restore(state)

    # Requests

    def handle(self, request: list[memoryview], room: list[memoryview]) -> Done:
        """Do the request in ``request`` and write the reply to ``room``.

        Data of reads and writes goes straight between files and these views. Raises ValueError if ``request`` is too
        short for a header, or ``room`` for an error.
        """
        size = sum(map(len, request))
        space = sum(map(len, room))
        if size < m.HEADER.size:
            raise ValueError(f"a request of {size} bytes")
        if space < m.ERROR.size:
            raise ValueError(f"room for a reply of {space} bytes")
        length, kind, tag = m.HEADER.unpack(front(request, m.HEADER.size))
        touched = 0
        self._tag = tag
        try:
            if tag in self._waiting:
                raise fail(errno.EBUSY)
            if not m.HEADER.size <= length <= size:
                raise fail(errno.EBADMSG)
            if length > (self._message_size or MAX_MESSAGE):
                raise fail(errno.EMSGSIZE)
            if not self._message_size and kind != Type.TVERSION:
                raise fail(errno.EPROTO)
            if kind == Type.TREAD:
                asked = Fields(front(request, length)[m.HEADER.size :])
                number, offset, count = asked.unpack(m.READ)
                asked.end()
                count = min(count, space - m.DATA_HEADER.size, self._message_size - m.DATA_HEADER.size)
                data = part(room, m.DATA_HEADER.size, count)
                touched = m.DATA_HEADER.size + count
                done = self._read(number, offset, data)
                put(room, m.DATA_HEADER.pack(m.DATA_HEADER.size + done, kind + 1, tag, done))
                return Done(m.DATA_HEADER.size + done, touched)
            body = self._body(kind, request, length, space)
        except _WaitError:
            return Done(0, 0, tag)
        except MalformedError:
            return self._error(room, tag, errno.EBADMSG, touched)
        except OSError as error:
            return self._error(room, tag, error.errno or errno.EIO, touched)
        if m.HEADER.size + len(body) > space:
            return self._error(room, tag, errno.EMSGSIZE, touched)
        reply = m.HEADER.pack(m.HEADER.size + len(body), kind + 1, tag) + body
        put(room, reply)
        return Done(len(reply), len(reply))

    def ready(self) -> list[tuple[int, bytes]]:
        """Tags and replies of requests that need not wait any more, to be asked for after each request."""
        found = []
        for tag, waiting in list(self._waiting.items()):
            try:
                if waiting.flushed:
                    raise fail(errno.EINTR)
                fd, inode = self._lockable(waiting.fid)
                if self._locks.blocked(inode, waiting.wanted) is not None:
                    continue
                body = bytes([m.LOCK_SUCCESS if self._locks.lock(fd, inode, waiting.wanted) else m.LOCK_BLOCKED])
                reply = m.HEADER.pack(m.HEADER.size + 1, Type.TLOCK + 1, tag) + body
            except OSError as error:
                reply = m.ERROR.pack(m.ERROR.size, Type.RLERROR, tag, error.errno or errno.EIO)
            del self._waiting[tag]
            found.append((tag, reply))
        return found

    @staticmethod
    def _error(room: list[memoryview], tag: int, number: int, touched: int) -> Done:
        put(room, m.ERROR.pack(m.ERROR.size, Type.RLERROR, tag, number))
        return Done(m.ERROR.size, max(touched, m.ERROR.size))

    def _body(self, kind: int, request: list[memoryview], length: int, space: int) -> bytes:
        """The reply to anything but Tread, without its header. Raises OSError or MalformedError."""
        if kind == Type.TWRITE:
            asked = Fields(front(request, min(length, _READ_AT))[m.HEADER.size :])
            number, offset, count = asked.unpack(m.READ)
            if count != length - _READ_AT:
                raise MalformedError(f"{length - _READ_AT} bytes of data, not {count}")
            return self._write(number, offset, part(request, _READ_AT, count)).to_bytes(4, "little")
        fields = Fields(front(request, length)[m.HEADER.size :])
        if kind == Type.TREADDIR:
            number, offset, count = fields.unpack(m.READ)
            fields.end()
            most = min(space, self._message_size) - m.DATA_HEADER.size
            data = self._readdir(number, offset, min(count, most))
            return len(data).to_bytes(4, "little") + data
        handler = self._handlers.get(kind)
        if handler is None:
            raise fail(errno.EOPNOTSUPP)
        return handler(fields)

    def _qid(self, found: os.stat_result) -> bytes:
        """The server's name of a file, which changes its version with the file's contents (intro(5))."""
        kind = m.QID_FILE
        if stat.S_ISDIR(found.st_mode):
            kind = m.QID_DIRECTORY
        elif stat.S_ISLNK(found.st_mode):
            kind = m.QID_SYMLINK
        # 0 would forbid a Linux client to cache.
        version = (found.st_mtime_ns ^ found.st_mtime_ns >> 32 ^ found.st_size << 8) & 0xFFFFFFFF or 1
        return m.QID.pack(kind, version, self.tree.number(found))

    def _qid_of(self, fd: int) -> bytes:
        return self._qid(os.fstat(fd))

    # The session

    def _version(self, fields: Fields) -> bytes:
        size = fields.u32()
        version = fields.string()
        fields.end()
        if size < LEAST_MESSAGE:
            raise fail(errno.EMSGSIZE)
        self._fids.clear()  # what waits for a lock is answered with an error
        known = version == m.VERSION or version.startswith(m.VERSION + b".")
        self._message_size = min(size, MAX_MESSAGE) if known else 0
        answer = m.VERSION if known else b"unknown"
        return min(size, MAX_MESSAGE).to_bytes(4, "little") + m.string(answer)

    def _auth(self, fields: Fields) -> bytes:
        raise fail(errno.EOPNOTSUPP)  # nobody needs to: whoever has the device is the client

    def _attach(self, fields: Fields) -> bytes:
        number, afid = fields.u32(), fields.u32()
        fields.string()  # uname: the numeric one counts
        path = fields.string()
        uid = fields.u32()
        fields.end()
        if afid != m.NO_FID:
            raise fail(errno.EBADF)
        self._fids.check_new(number)
        fd = self.tree.find(tuple(name for name in path.split(b"/") if name))
        self._fids[number] = Fid(fd, 0 if uid == m.NO_UID else uid)
        return self._qid_of(fd)

    def _flush(self, fields: Fields) -> bytes:
        tag = fields.u16()
        fields.end()
        waiting = self._waiting.get(tag)
        if waiting is not None:
            waiting.flushed = True  # flush(5): its answer comes before the one to this
        return b""

    def _walk(self, fields: Fields) -> bytes:
        number, new, count = fields.u32(), fields.u32(), fields.u16()
        if count > m.MAX_WALK:
            raise fail(errno.EINVAL)
        names = [fields.string() for _ in range(count)]
        fields.end()
        fid = self._fids.file(number)
        if new != number:
            self._fids.check_new(new)
        qids: list[bytes] = []
        fd = None if names else self.tree.copy(fid.fd)
        try:
            for name in names:
                try:
                    found = self.tree.look(fid.fd if fd is None else fd, name)
                except OSError:
                    if not qids:
                        raise
                    break
                if fd is not None:
                    give(fd)
                fd = found
                qids.append(self._qid_of(fd))
            if fd is not None and len(qids) == count:
                if new == number:
                    self._fids.release(self._fids.pop(number))
                self._fids[new] = Fid(fd, fid.uid)
                fd = None
        finally:
            if fd is not None:
                give(fd)  # walk(5): nothing changes unless all of it is there
        return len(qids).to_bytes(2, "little") + b"".join(qids)

    def _clunk(self, fields: Fields) -> bytes:
        number = fields.u32()
        fields.end()
        if self._fids.forget_stale(number):
            return b""
        fid = self._fids.pop(number)
        try:
            if fid.attribute is not None and fid.attribute.writing:
                self._store(fid.fd, fid.attribute)
        finally:
            self._fids.release(fid)
        return b""

    def _remove(self, fields: Fields) -> bytes:
        number = fields.u32()
        fields.end()
        if self._fids.forget_stale(number):
            raise fail(errno.ESTALE)
        fid = self._fids.pop(number)
        try:
            if fid.attribute is not None:
                raise fail(errno.EBADF)
            self.tree.remove_open(fid.fd)
        finally:
            self._fids.release(fid)
        return b""

    # Files

    def _lopen(self, fields: Fields) -> bytes:
        number, flags = fields.u32(), fields.u32()
        fields.end()
        fid = self._fids.file(number)
        if fid.flags is not None:
            raise fail(errno.EBADF)
        self._fids.open(fid, flags)
        return self._qid_of(fid.fd) + bytes(4)  # iounit 0: as much as a message holds

    def _lcreate(self, fields: Fields) -> bytes:
        number, name, flags = fields.u32(), fields.string(), fields.u32()
        mode, gid = fields.u32(), fields.u32()
        fields.end()
        fid = self._fids.file(number)
        if fid.flags is not None:
            raise fail(errno.EBADF)
        access, truncate, sync = open_modes(flags)
        owned = self._owned(fid, stat.S_IFREG | stat.S_IMODE(mode), gid)
        exclusive = bool(flags & m.OPEN_EXCLUSIVE)
        fd = self.tree.create(fid.fd, name, access, owned, exclusive=exclusive, truncate=truncate, sync=sync)
        give(fid.fd)
        fid.fd, fid.flags = fd, flags
        return self._qid_of(fd) + bytes(4)

    @staticmethod
    def _owned(fid: Fid, mode: int, gid: int, major: int = 0, minor: int = 0) -> Owned:
        """What a new file is to be."""
        return Owned(mode, fid.uid, 0 if gid == m.NO_UID else gid, major, minor)

    def _read(self, number: int, offset: int, views: list[memoryview]) -> int:
        fid = self._fids.any(number)
        if fid.attribute is not None:
            if fid.attribute.writing:
                raise fail(errno.EBADF)
            piece = bytes(fid.attribute.value[offset : offset + sum(map(len, views))])
            put(views, piece)
            return len(piece)
        return self.tree.read(self._fids.opened(number).fd, views, offset)

    def _write(self, number: int, offset: int, views: list[memoryview]) -> int:
        fid = self._fids.any(number)
        if fid.attribute is not None:
            held = fid.attribute
            count = sum(map(len, views))
            if not held.writing:
                raise fail(errno.EBADF)
            if offset != len(held.value) or offset + count > held.size:
                raise fail(errno.EINVAL)
            held.value += b"".join(views)
            return count
        return self.tree.write(self._fids.opened(number).fd, views, offset)

    def _fsync(self, fields: Fields) -> bytes:
        number = fields.u32()
        data_only = fields.u32() if fields.more else 0  # later than the rest of the protocol
        fields.end()
        self.tree.sync(self._fids.opened(number).fd, bool(data_only))
        return b""

    # Attributes

    def _getattr(self, fields: Fields) -> bytes:
        number = fields.u32()
        fields.u64()  # request_mask: everything is known at once
        fields.end()
        fid = self._fids.file(number)
        found = os.fstat(fid.fd)
        owned = self.tree.owned(fid.fd, found)
        device = owned.minor & 0xFF | owned.major << 8 | (owned.minor & ~0xFF) << 12
        return m.GETATTR.pack(
            *(m.GETATTR_BASIC, self._qid(found), owned.mode, owned.uid, owned.gid),
            *(found.st_nlink, device & _U64, found.st_size, found.st_blksize, found.st_blocks),
            *_time(found.st_atime_ns),
            *_time(found.st_mtime_ns),
            *_time(found.st_ctime_ns),
            *(0, 0, 0, 0),
        )

    def _setattr(self, fields: Fields) -> bytes:
        number, valid, mode, uid, gid, size, *times = fields.unpack(m.SETATTR)
        fields.end()
        fid = self._fids.file(number)
        if valid & m.SET_SIZE:
            writable = fid.flags is not None and fid.flags & m.OPEN_ACCESS != os.O_RDONLY
            self.tree.truncate(fid.fd, writable, size)
        new_mode = mode if valid & m.SET_MODE else None
        new_uid = uid if valid & m.SET_UID and uid != m.NO_UID else None
        new_gid = gid if valid & m.SET_GID and gid != m.NO_UID else None
        if new_mode is not None or new_uid is not None or new_gid is not None:
            self.tree.set_owned(fid.fd, new_mode, new_uid, new_gid)
        if valid & (m.SET_ATIME | m.SET_MTIME):
            self._set_times(fid.fd, valid, times)
        return b""

    def _set_times(self, fd: int, valid: int, times: list[int]) -> None:
        given = valid & (m.SET_ATIME_GIVEN | m.SET_MTIME_GIVEN)
        if valid & m.SET_ATIME and valid & m.SET_MTIME and not given:
            self.tree.touch(fd)
            return
        now = time.time_ns()
        wanted: list[int | None] = []
        for want, explicit, seconds, nanoseconds in (
            (m.SET_ATIME, m.SET_ATIME_GIVEN, times[0], times[1]),
            (m.SET_MTIME, m.SET_MTIME_GIVEN, times[2], times[3]),
        ):
            if not valid & want:
                wanted.append(None)
            elif not valid & explicit:
                wanted.append(now)
            else:
                signed = seconds - (seconds >> 63 << 64)
                if nanoseconds >= _NANO:
                    raise fail(errno.EINVAL)
                wanted.append(signed * _NANO + nanoseconds)
        self.tree.set_times(fd, wanted[0], wanted[1])

    def _statfs(self, fields: Fields) -> bytes:
        number = fields.u32()
        fields.end()
        found = self.tree.statfs(self._fids.file(number).fd)
        return m.STATFS.pack(
            *(_FILE_SYSTEM, found.f_frsize or found.f_bsize, found.f_blocks, found.f_bfree, found.f_bavail),
            *(found.f_files, found.f_ffree, found.f_fsid & _U64, found.f_namemax),
        )

    def _xattrwalk(self, fields: Fields) -> bytes:
        number, new, name = fields.u32(), fields.u32(), fields.string()
        fields.end()
        fid = self._fids.file(number)
        self._fids.check_new(new)
        value = self.tree.get_attribute(fid.fd, name) if name else self.tree.list_attributes(fid.fd)
        made = Fid(self.tree.copy(fid.fd), fid.uid)
        try:
            self._fids.hold(made, Attribute(name, bytearray(value), len(value), 0, False))
        except OSError:
            give(made.fd)
            raise
        self._fids[new] = made
        return len(value).to_bytes(8, "little")

    def _xattrcreate(self, fields: Fields) -> bytes:
        number, name, size, flags = fields.u32(), fields.string(), fields.u64(), fields.u32()
        fields.end()
        fid = self._fids.file(number)
        if fid.flags is not None:
            raise fail(errno.EBADF)
        if size > MAX_ATTRIBUTE:
            raise fail(errno.E2BIG)
        if flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE) or not name:
            raise fail(errno.EINVAL)
        self._fids.hold(fid, Attribute(name, bytearray(), size, flags, True))
        return b""

    def _store(self, fd: int, held: Attribute) -> None:
        """Do what was begun with Txattrcreate; Linux removes an attribute by replacing it with nothing."""
        if len(held.value) != held.size:
            raise fail(errno.EINVAL)
        if not held.size and held.flags == os.XATTR_REPLACE:
            self.tree.remove_attribute(fd, held.name)
        else:
            self.tree.set_attribute(fd, held.name, bytes(held.value), held.flags)

    # Directories

    def _readdir(self, number: int, offset: int, room: int) -> bytes:
        fid = self._fids.opened(number)
        at_root = self.tree.is_root(fid.fd)
        pieces = []
        found = self.tree.entries(fid.fd, offset, room)
        for entry in found:
            size = m.DIRENT.size + len(entry.name)
            if room < size:
                break
            room -= size
            pieces.append(self._entry(fid.fd, entry.name, entry.number, entry.following, entry.kind, at_root))
        data = b"".join(pieces)
        if found and not data:
            raise fail(errno.EINVAL)  # as getdents(2) where not even one fits
        return data

    def _entry(self, fd: int, name: bytes, number: int, following: int, kind: int, at_root: bool) -> bytes:
        """One entry of a directory. Its qid has no version, as nobody looked at the file."""
        if name == b".." and at_root:
            number = self.tree.number(os.fstat(fd))
        elif kind == 0:
            try:
                kind = stat.S_IFMT(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode) >> 12
            except OSError:
                kind = 0
        if kind == stat.S_IFREG >> 12:
            hidden = self._hidden_kind(fd, name)
            kind = hidden >> 12 if hidden else kind
        qid_kind = {stat.S_IFDIR >> 12: m.QID_DIRECTORY, stat.S_IFLNK >> 12: m.QID_SYMLINK}.get(kind, m.QID_FILE)
        qid = m.QID.pack(qid_kind, 0, number)
        return m.DIRENT.pack(qid, following & _U64, kind, len(name)) + name

    def _hidden_kind(self, fd: int, name: bytes) -> int:
        try:
            return self.tree.hidden_kind(fd, name)
        except OSError:
            return 0

    def _mkdir(self, fields: Fields) -> bytes:
        number, name, mode, gid = fields.u32(), fields.string(), fields.u32(), fields.u32()
        fields.end()
        fid = self._fids.file(number)
        return self._made(self.tree.mkdir(fid.fd, name, self._owned(fid, stat.S_IFDIR | stat.S_IMODE(mode), gid)))

    def _mknod(self, fields: Fields) -> bytes:
        number, name, mode = fields.u32(), fields.string(), fields.u32()
        major, minor, gid = fields.u32(), fields.u32(), fields.u32()
        fields.end()
        if major >= 1 << 12 or minor >= 1 << 20:
            raise fail(errno.EINVAL)
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        fid = self._fids.file(number)
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            raise fail(errno.EINVAL)
        if kind not in (stat.S_IFCHR, stat.S_IFBLK):
            major = minor = 0
        owned = self._owned(fid, kind | stat.S_IMODE(mode), gid, major, minor)
        return self._made(self.tree.mknod(fid.fd, name, owned))

    def _symlink(self, fields: Fields) -> bytes:
        number, name, target, gid = fields.u32(), fields.string(), fields.string(), fields.u32()
        fields.end()
        fid = self._fids.file(number)
        return self._made(self.tree.symlink(fid.fd, name, target, self._owned(fid, stat.S_IFLNK | 0o777, gid)))

    def _made(self, fd: int) -> bytes:
        try:
            return self._qid_of(fd)
        finally:
            give(fd)

    def _readlink(self, fields: Fields) -> bytes:
        number = fields.u32()
        fields.end()
        return m.string(self.tree.readlink(self._fids.file(number).fd))

    def _link(self, fields: Fields) -> bytes:
        directory, number, name = fields.u32(), fields.u32(), fields.string()
        fields.end()
        self.tree.link(self._fids.file(number).fd, self._fids.file(directory).fd, name)
        return b""

    def _rename(self, fields: Fields) -> bytes:
        number, directory, name = fields.u32(), fields.u32(), fields.string()
        fields.end()
        self.tree.move(self._fids.file(number).fd, self._fids.file(directory).fd, name)
        return b""

    def _renameat(self, fields: Fields) -> bytes:
        old_directory, old, directory, name = fields.u32(), fields.string(), fields.u32(), fields.string()
        fields.end()
        self.tree.rename(self._fids.file(old_directory).fd, old, self._fids.file(directory).fd, name)
        return b""

    def _unlinkat(self, fields: Fields) -> bytes:
        number, name, flags = fields.u32(), fields.string(), fields.u32()
        fields.end()
        if flags & ~m.REMOVE_DIRECTORY:
            raise fail(errno.EINVAL)
        self.tree.remove(self._fids.file(number).fd, name, bool(flags & m.REMOVE_DIRECTORY))
        return b""

    # Locks

    def _lockable(self, number: int) -> tuple[int, tuple[int, int]]:
        """The descriptor of an open regular file, and which file that is."""
        fid = self._fids.opened(number)
        found = os.fstat(fid.fd)
        if not stat.S_ISREG(found.st_mode):
            raise fail(errno.EINVAL)
        return fid.fd, (found.st_dev, found.st_ino)

    @staticmethod
    def _range(kind: int, start: int, length: int, client: bytes, process: int) -> Range:
        end = start + length if length else END
        known = kind in (m.LOCK_READ, m.LOCK_WRITE, m.LOCK_NONE)
        if not known or start >= end or end > END or len(client) > m.MAX_NAME:
            raise fail(errno.EINVAL)
        return Range(start, end, kind == m.LOCK_WRITE, (client, process))

    def _lock(self, fields: Fields) -> bytes:
        number, kind, flags = fields.u32(), fields.u8(), fields.u32()
        start, length, process, client = fields.u64(), fields.u64(), fields.u32(), fields.string()
        fields.end()
        wanted = self._range(kind, start, length, client, process)
        fd, inode = self._lockable(number)
        if kind == m.LOCK_NONE:
            self._locks.unlock(inode, wanted.owner, wanted.start, wanted.end)
            return bytes([m.LOCK_SUCCESS])
        if flags & m.LOCK_WAIT and self._locks.blocked(inode, wanted) is not None:
            # A Linux client told "blocked" asks again half a minute later. It has let the owners in the guest wait for
            # each other already, so what is in the way here is about to be released.
            self._waiting[self._tag] = Waiting(number, wanted)
            raise _WaitError
        return bytes([m.LOCK_SUCCESS if self._locks.lock(fd, inode, wanted) else m.LOCK_BLOCKED])

    def _getlock(self, fields: Fields) -> bytes:
        number, kind = fields.u32(), fields.u8()
        start, length, process, client = fields.u64(), fields.u64(), fields.u32(), fields.string()
        fields.end()
        wanted = self._range(kind, start, length, client, process)
        fd, inode = self._lockable(number)
        found = self._locks.conflict(fd, inode, wanted) if kind != m.LOCK_NONE else None
        if found is None:
            kind = m.LOCK_NONE
        else:
            kind = m.LOCK_WRITE if found.exclusive else m.LOCK_READ
            start, length = found.start, 0 if found.end == END else found.end - found.start
            client, process = found.owner
        lock = bytes([kind]) + start.to_bytes(8, "little") + length.to_bytes(8, "little")
        return lock + (process & 0xFFFFFFFF).to_bytes(4, "little") + m.string(client)


def _time(nanoseconds: int) -> tuple[int, int]:
    seconds, rest = divmod(nanoseconds, _NANO)
    return seconds & _U64, rest
