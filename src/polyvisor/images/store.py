"""Where images live on the host: a cache directory, published atomically, pulled by one process at a time.

    $POLYVISOR_CACHE/
        downloads/SHA256[.part]         files fetched, by content
        images/NAME/ID/                 kernel, initrd, image.json, lock.json, and disk in images that have one
        images/NAME/current -> ID       the image that NAME means now

The cache is ``$POLYVISOR_CACHE``, else ``$XDG_CACHE_HOME/polyvisor``, else ``~/.cache/polyvisor``.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyvisor.cachedir import cache_root
from polyvisor.dataclass import dataclass

from .errors import ImageError, storage_errors
from .progress import Progress

KERNEL, INITRD, IMAGE_JSON, LOCK_JSON, DISK = "kernel", "initrd", "image.json", "lock.json", "disk"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
_CURRENT = "current"
_STAGING = ".new-"
# What suits the board, before and behind an image's own words. No device needs memory in one piece: the 128 MiB that
# Debian's kernel keeps for such let it die early with 192 MiB or so. And what it dies of before it has its console, the
# SBI prints: but no more than `quiet` lets it, if that comes first.
_BEFORE, _BEHIND = "cma=0", "earlycon=sbi"


@dataclass(frozen=True)
class Image:
    """A guest that can be booted.

    ``kernel`` is a flat Linux ``Image`` for ``arch``, ``initrd`` an initramfs, ``append`` the kernel command line that
    suits them. ``version`` is the version of the kernel's package, ``kernel_version`` what ``uname -r`` says in the
    guest; ``created`` is an ISO 8601 time, UTC; ``suite`` is the distribution's suite, or None for local packages.
    """

    name: str
    version: str
    arch: str
    kernel_version: str
    suite: str | None
    created: str
    append: str
    directory: Path
    has_disk: bool = False

    @property
    def kernel(self) -> Path:
        """The kernel, a flat ``Image``."""
        return self.directory / KERNEL

    @property
    def initrd(self) -> Path:
        """The uncompressed initial file system."""
        return self.directory / INITRD

    @property
    def disk(self) -> Path | None:
        """The raw disk with the root file system, if the image has one. It is not to be written to."""
        return self.directory / DISK if self.has_disk else None

    @property
    def files(self) -> tuple[Path, ...]:
        """All its files."""
        names = (KERNEL, INITRD, *((DISK,) if self.has_disk else ()), IMAGE_JSON, LOCK_JSON)
        return tuple(self.directory / name for name in names)

    @property
    def size(self) -> int:
        """Bytes that its files take on the host: of a disk, what is used."""
        return sum(min(status.st_size, 512 * status.st_blocks) for status in (path.stat() for path in self.files))

    @property
    def lock(self) -> dict[str, Any]:
        """The contents of ``lock.json``: what the image was built from."""
        lock: dict[str, Any] = json.loads((self.directory / LOCK_JSON).read_text())
        return lock

    def command_line(self, *, run: str | None = None, winsize: tuple[int, int] | None = None) -> str:
        """The kernel command line for the board, :attr:`append` with it, that also runs the shell command ``run`` and
        then powers off with its exit status (without it: an interactive shell), on a console of ``winsize`` = (rows,
        columns).

        Linux cuts its command line without a word - on riscv64 at 1024 bytes in 6.12, at 2048 in 7.2 - so a command
        that does not fit into the lesser raises :class:`ImageError` ("usage").
        """
        words = [_BEFORE, self.append, _BEHIND]
        if winsize is not None:
            words.append("polyvisor.winsize={}x{}".format(*winsize))
        if run is not None:
            words.append("polyvisor.run=" + base64.b64encode(run.encode()).decode())
        line = " ".join(words)
        if len(line) >= 1024:
            raise ImageError(
                f"the command is too long for the kernel's command line ({len(line)} bytes, at most 1023): "
                "put it in a file that the guest can read",
                "usage",
            )
        return line


def check_name(name: str) -> None:
    """Raise :class:`ImageError` ("usage") unless an image can be called so: ``NAME`` or ``NAME:TAG``."""
    if not _NAME.fullmatch(name):
        raise ImageError(
            f"{name!r} is not a name for an image: give NAME or NAME:TAG, of letters, digits, dots, dashes", "usage"
        )


def downloads() -> Path:
    """Where fetched files are kept, by content."""
    return cache_root() / "downloads"


def _home(name: str) -> Path:
    return cache_root() / "images" / name


def find(name: str) -> Image | None:
    """The published image ``name``, or None when there is none.

    Raises :class:`ImageError` ("damaged") when it is there but cannot be read.
    """
    if not _NAME.fullmatch(name):
        return None
    link = _home(name) / _CURRENT
    try:
        # Resolved once, so that the caller keeps one consistent image when another process publishes a newer one.
        directory = link.resolve(strict=True)
        fields = json.loads((directory / IMAGE_JSON).read_text())
        image = Image(
            name=fields["name"],
            version=fields["version"],
            arch=fields["arch"],
            kernel_version=fields["kernel_version"],
            suite=fields["suite"],
            created=fields["created"],
            append=fields["append"],
            directory=directory,
            has_disk="disk" in fields,
        )
    except FileNotFoundError as error:
        if not link.is_symlink():
            return None
        raise _damaged(name, f"{error.filename} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(name, f"its {IMAGE_JSON} cannot be read") from error
    except OSError as error:
        raise _damaged(name, str(error)) from error
    for path in image.files:
        if not path.is_file():
            raise _damaged(name, f"{path} is missing")
    return image


def _damaged(name: str, why: str) -> ImageError:
    verb = "build" if ":" in name else "pull"
    return ImageError(f"image {name} is damaged ({why}): run `polyvisor image {verb} {name}`", "damaged")


def get(name: str) -> Image:
    """The published image ``name``. Raises :class:`ImageError`: "missing" or "damaged"."""
    image = find(name)
    if image is None:
        verb = "build" if ":" in name else "pull"
        raise ImageError(f"no image {name} here: run `polyvisor image {verb} {name}`", "missing")
    return image


def local() -> list[Image]:
    """All published images, by name. One that is damaged is left out; :func:`verify` says what is wrong with it."""
    images = []
    root = cache_root() / "images"
    for home in sorted(root.iterdir()) if root.is_dir() else ():
        if not home.is_dir():
            continue
        try:
            image = find(home.name)
        except ImageError:
            continue
        if image is not None:
            images.append(image)
    return images


def verify(name: str) -> Image:
    """Compare every file of the image with the hash in its lock file; return the image.

    Raises :class:`ImageError`: "missing", or "damaged" with the first file that differs.
    """
    image = get(name)
    try:
        files = image.lock["files"]
        for file, expected in files.items():
            if sha256_file(image.directory / file) != expected["sha256"]:
                raise _damaged(name, f"{file} is not what was built")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(name, str(error)) from error
    return image


def remove(name: str) -> None:
    """Delete the image ``name`` and, when no image is left, the downloads. Raises :class:`ImageError`."""
    home = _home(name)
    if not _NAME.fullmatch(name) or not home.is_dir():
        raise ImageError(f"no image {name} here: `polyvisor image list` shows those that are", "missing")
    with storage_errors(cache_root()), exclusive(name):
        (home / _CURRENT).unlink(missing_ok=True)
        for child in home.iterdir():
            if child.is_dir():
                shutil.rmtree(child)
        home.rmdir()
        if not local():
            shutil.rmtree(downloads(), ignore_errors=True)


@contextmanager
def exclusive(name: str, progress: Progress | None = None) -> Iterator[None]:
    """Hold the lock of image ``name``, so that two processes do not fetch it at once; wait for it when need be."""
    root = cache_root() / "images"
    with storage_errors(cache_root()):
        root.mkdir(parents=True, exist_ok=True)
        # Beside the image's directory, not in it: `remove` deletes that while it holds the lock.
        descriptor = os.open(root / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress is not None:
                progress.stage(f"waiting for another process that is working on image {name}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def staging(name: str) -> Iterator[Path]:
    """A new directory in which to build the image ``name``; gone afterwards unless published. Needs the lock."""
    home = _home(name)
    home.mkdir(parents=True, exist_ok=True)
    for stale in home.glob(_STAGING + "*"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=_STAGING, dir=home))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def publish(name: str, directory: Path) -> Image:
    """Make ``directory``, which holds the files of an image, the current image ``name``, in one atomic step.

    After a crash of the host it is whole, or the one before is current. That one stays on disk until the next
    publication, for processes that are about to read it.
    """
    home = _home(name)
    identity = sha256_file(directory / LOCK_JSON)[:16]
    target = home / identity
    previous = _link_target(home / _CURRENT)
    directory.chmod(0o755)  # mkdtemp makes it private; an image is as readable as the cache it is in
    for path in (*directory.iterdir(), directory):
        _make_certain(path)
    if target.exists():
        # Made again, the same to the last bit: it gives way in one step, and is removed below.
        target.rename(tempfile.mkdtemp(prefix=_STAGING, dir=home))
    directory.rename(target)
    link = home / (_CURRENT + ".new")
    link.unlink(missing_ok=True)
    link.symlink_to(identity)
    link.replace(home / _CURRENT)
    _make_certain(home)
    for child in home.iterdir():
        if child.is_dir() and not child.is_symlink() and child.name not in (identity, previous):
            shutil.rmtree(child, ignore_errors=True)
    return get(name)


def _make_certain(path: Path) -> None:
    """Let what is in a file or directory survive a crash of the host. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune_downloads(days: float = 30, kept: frozenset[str] = frozenset()) -> int:
    """Delete downloads that nothing has used for ``days`` days, but those whose hash is in ``kept``.

    Gives the bytes that were freed.
    """
    oldest = time.time() - days * 86400
    freed = 0
    for path in downloads().iterdir() if downloads().is_dir() else ():
        status = path.stat()
        if status.st_mtime < oldest and path.name not in kept:
            path.unlink(missing_ok=True)
            freed += status.st_size
    return freed


def prune(days: float = 0) -> int:
    """Delete replaced versions of images, what builds that were killed left, and downloads that no image here was made
    of and that nothing has used for ``days`` days. Gives the bytes that were freed.

    A machine that runs from a replaced version goes on: its files are open. Raises :class:`ImageError`.
    """
    freed = 0
    root = cache_root() / "images"
    with storage_errors(cache_root()):
        for home in sorted(root.iterdir()) if root.is_dir() else ():
            if not home.is_dir():
                continue
            with exclusive(home.name):
                current = _link_target(home / _CURRENT)
                for child in home.iterdir():
                    if child.is_dir() and not child.is_symlink() and child.name != current:
                        freed += sum(512 * path.lstat().st_blocks for path in child.rglob("*"))
                        shutil.rmtree(child)
        return freed + prune_downloads(days, frozenset(_used_downloads()))


def _used_downloads() -> Iterator[str]:
    for image in local():
        try:
            lock = image.lock
            for key in ("packages", "boot", "tools"):
                yield from (package["sha256"] for package in lock.get(key, ()))
            if lock.get("release"):
                yield lock["release"]["packages_sha256"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # what cannot be read needs no downloads


def describe_files(directory: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a lock file says about the files of an image."""
    return {
        name: {"size": (directory / name).stat().st_size, "sha256": sha256_file(directory / name)} for name in names
    }


def write_json(path: Path, value: object) -> None:
    """Write a file that people may read too."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def _link_target(link: Path) -> str | None:
    try:
        return str(link.readlink())
    except OSError:
        return None


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
