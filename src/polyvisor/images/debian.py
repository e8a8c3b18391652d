"""The image "debian": Debian's newest riscv64 kernel with a busybox userland, from a mirror or from local packages."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polyvisor.cachedir import cache_root

from . import contents as package_contents
from . import initramfs, kernel, modules, repository, sources, store
from .contents import Contents
from .errors import ImageError, storage_errors
from .fetch import Fetcher
from .progress import Progress
from .repository import Index, Package
from .signature import Keyring, MissingKeyError
from .store import Image

NAME = "debian"
ARCHITECTURE = "riscv64"
SUITES = ("sid", "forky", "trixie")
APPEND = "console=ttyS0 quiet"

_ROOT = f"linux-image-{ARCHITECTURE}"
_BUSYBOX = "busybox-static"
_KEYRING = "debian-archive-keyring"
# The packages that hold a kernel's files, not the metapackages: linux-base-VERSION has the list of built-in modules.
_KERNEL_PACKAGE = re.compile(r"linux-(image|binary|base|modules(-[a-z]+)?)-[0-9].*")
_WANTED = re.compile(rf"{_KERNEL_PACKAGE.pattern}|{_ROOT}|{_BUSYBOX}")
# Suites that old keys vouch for longest; one of them may hold the keyring that vouches for the wanted suite.
_KEYRING_SUITES = ("trixie", "bookworm")
_FALLBACK = ("corrupt", "expired", "missing", "signature")


@dataclass(frozen=True)
class Fetched:
    """Packages of one suite, and the files that they are in; ``packages_path`` is where the suite lists them."""

    index: Index
    packages_path: str
    packages: list[Package]
    paths: list[Path]

    def origin(self) -> dict[str, Any]:
        """What a lock file says about them."""
        return {
            "suite": self.index.suite,
            "release": {
                "path": self.index.path,
                "date": self.index.date,
                "valid_until": self.index.valid_until,
                "expired_accepted": self.index.expired,
                "sha256": self.index.sha256,
                "signed_by": list(self.index.signers),
                "packages_path": self.packages_path,
                "packages_sha256": self.index.files[self.packages_path][1],
            },
            "packages": [locked(package) for package in self.packages],
        }


def locked(package: Package) -> dict[str, Any]:
    """What a lock file says about a package."""
    return {
        "name": package.name,
        "version": package.version,
        "architecture": package.architecture,
        "path": package.path,
        "size": package.size,
        "sha256": package.sha256,
    }


def pull(
    progress: Progress,
    *,
    suites: Sequence[str] = SUITES,
    mirror: str | None = None,
    keyring: Path | None = None,
    allow_expired: bool = False,
) -> Image:
    """Fetch the packages from the first of ``suites`` that is whole and trusted, and build and publish the image.

    A suite that cannot be used now (being updated, expired, wrongly signed) is reported to ``progress`` and the next
    one is tried. When the cached image was already built from the same packages, it is returned as it is. Raises
    :class:`ImageError`. The caller holds the lock of the image.
    """
    sources = Sources(suites, mirror, keyring, allow_expired)
    fetched = fetch(sources, boot_packages, progress)
    current = _up_to_date(fetched.packages)
    if current is not None:
        progress.stage(f"{NAME} is up to date: {current.version} ({current.suite})")
        return current
    image = _build(fetched.paths, fetched.origin(), progress)
    store.prune_downloads()
    return image


def fetch_packages(
    roots: Sequence[str],
    related: re.Pattern[str],
    progress: Progress,
    *,
    suites: Sequence[str] = SUITES,
    mirror: str | None = None,
    keyring: Path | None = None,
    allow_expired: bool = False,
) -> list[tuple[Package, Path]]:
    """The newest riscv64 packages ``roots``, with those dependencies whose whole name matches ``related``, as files.

    They are fetched and verified as those of the image are. Raises :class:`ImageError`.
    """
    wanted = re.compile("|".join([*map(re.escape, roots), f"(?:{related.pattern})"]))

    def choose(index: Path) -> list[Package]:
        available = repository.parse_packages(index, wanted)
        chosen: dict[str, Package] = {}
        for root in roots:
            for package in repository.closure(available, root, lambda name: related.fullmatch(name) is not None):
                chosen.setdefault(package.name, package)
        return list(chosen.values())

    fetched = fetch(Sources(suites, mirror, keyring, allow_expired), choose, progress)
    return list(zip(fetched.packages, fetched.paths, strict=True))


@dataclass(frozen=True)
class Sources:
    """Where packages come from: see :class:`polyvisor.images.Options`."""

    suites: Sequence[str] = SUITES
    mirror: str | None = None
    keyring: Path | None = None
    allow_expired: bool = False


Choice = Callable[[Path], list[Package]]
"""Takes the ``Packages.xz`` of a suite and says which packages are wanted."""


def boot_packages(index: Path) -> list[Package]:
    """What a guest needs to boot: a kernel, its modules, and busybox."""
    available = repository.parse_packages(index, _WANTED)
    chosen = repository.closure(available, _ROOT, lambda name: _KERNEL_PACKAGE.fullmatch(name) is not None)
    # The metapackage only names the others. Busybox may come from any version: nothing depends on it.
    packages = [package for package in chosen if package.name != _ROOT]
    return packages + repository.closure(available, _BUSYBOX, lambda name: False)


def make_fetcher(options: Sources, progress: Progress) -> tuple[Fetcher, sources.Archive]:
    """What fetches from the mirror that ``options`` mean. Raises :class:`ImageError`."""
    archive = sources.find_archive(options.mirror, options.keyring)
    return Fetcher(archive.uri, store.downloads(), progress, archive.proxies), archive


def fetch(options: Sources, choose: Choice, progress: Progress) -> Fetched:
    """What ``choose`` takes of the first suite that can be used. Raises :class:`ImageError`."""
    fetcher, archive = make_fetcher(options, progress)
    trusted = _load_keyrings(archive.keyrings)
    accept = "because --allow-expired was given" if options.allow_expired else None
    if accept is None and not archive.check_valid_until:
        accept = "because apt on this host is configured not to check Valid-Until"
    failures: list[ImageError] = []
    for suite in options.suites:
        try:
            return _fetch_suite(fetcher, suite, trusted, options.suites, accept, choose, progress)
        except ImageError as error:
            if error.kind not in _FALLBACK:
                raise
            failures.append(error)
            if suite != options.suites[-1]:
                progress.stage(f"suite {suite} cannot be used now, trying the next: {error}")
    if len(failures) == 1:
        raise failures[0]
    raise ImageError(
        f"no suite of {', '.join(options.suites)} can be used now: {'; '.join(map(str, failures))}", failures[-1].kind
    )


def build_from_packages(directory: Path, progress: Progress) -> Image:
    """Build and publish the image from the .deb and .tar files in ``directory``, with no network.

    Together they must hold one kernel, and ``usr/bin/busybox``. They are trusted as they are: their hashes go to the
    lock file. Raises :class:`ImageError`. The caller holds the lock of the image.
    """
    try:
        paths = sorted(
            path for path in directory.iterdir() if re.search(r"\.(deb|tar|tar\.(gz|xz|bz2)|tgz)$", path.name)
        )
        packages = [_describe(path) for path in paths]
    except OSError as error:
        raise ImageError(f"cannot read {error.filename or directory}: {error.strerror}", "usage") from error
    if not paths:
        raise ImageError(f"{directory} holds no .deb or .tar files", "usage")
    return _build(paths, {"suite": None, "release": None, "packages": packages}, progress)


def _describe(path: Path) -> dict[str, Any]:
    fields = package_contents.control(path) if path.suffix == ".deb" else {}
    return {
        "name": fields.get("Package", path.name),
        "version": fields.get("Version"),
        "architecture": fields.get("Architecture"),
        "path": path.name,
        "size": path.stat().st_size,
        "sha256": store.sha256_file(path),
    }


def _load_keyrings(keyrings: Iterable[str]) -> Keyring:
    data = b""
    names = []
    for item in keyrings:
        if item.startswith("-----BEGIN"):
            names.append("the key in apt's Signed-By")
            raw = item.encode()
        else:
            names.append(item)
            try:
                raw = Path(item).read_bytes()
            except OSError as error:
                raise ImageError(
                    f"cannot read the keyring {item}: {error.strerror}; pass --keyring FILE", "signature"
                ) from error
        if data and raw.startswith(b"-----BEGIN") != data.startswith(b"-----BEGIN"):
            raise ImageError("armored and binary keyrings cannot be mixed; pass one --keyring FILE", "signature")
        data += raw
    return Keyring(", ".join(names), data)


def _fetch_suite(
    fetcher: Fetcher,
    suite: str,
    keyring: Keyring,
    suites: Sequence[str],
    accept_expired: str | None,
    choose: Choice,
    progress: Progress,
) -> Fetched:
    index = _fetch_index(fetcher, suite, keyring, suites, progress)
    if index.expired:
        if accept_expired is None:
            raise ImageError(
                f"{suite}'s InRelease expired on {index.valid_until}: try another --mirror, check this host's clock, "
                "or pass --allow-expired",
                "expired",
            )
        progress.stage(f"{suite}'s InRelease expired on {index.valid_until}, accepted {accept_expired}")
    progress.stage(f"suite {suite} of {index.date}, signed by {', '.join(key[-16:].upper() for key in index.signers)}")
    listed, packages_path = repository.fetch_packages_file(fetcher, index, (ARCHITECTURE,))
    packages = choose(listed)
    return Fetched(index, packages_path, packages, fetch_files(fetcher, packages, progress))


def fetch_files(fetcher: Fetcher, packages: Sequence[Package], progress: Progress) -> list[Path]:
    """Fetch the files of ``packages``, unless they are here. Raises :class:`ImageError`."""
    total = sum(package.size for package in packages)
    if packages:
        progress.stage(f"fetching {len(packages)} packages, {total / 1e6:.1f} MB")
    return [fetcher.file(package.path, size=package.size, sha256=package.sha256) for package in packages]


def _fetch_index(fetcher: Fetcher, suite: str, keyring: Keyring, suites: Sequence[str], progress: Progress) -> Index:
    """The index of ``suite``; when the keyring is too old for it, by way of a newer keyring in another suite."""
    try:
        return repository.fetch_index(fetcher, suite, keyring)
    except MissingKeyError as error:
        missing = error
    progress.stage(f"{keyring.source} is too old for {suite}, looking for a newer {_KEYRING} that it vouches for")
    for other in dict.fromkeys((*_KEYRING_SUITES, *suites)):
        if other == suite:
            continue
        try:
            newer = _newer_keyring(fetcher, other, keyring)
            index = repository.fetch_index(fetcher, suite, newer)
        except ImageError as error:
            if error.kind not in _FALLBACK:
                raise
            continue
        progress.stage(f"{suite} is signed by a key of {newer.source}")
        return index
    raise missing


def _newer_keyring(fetcher: Fetcher, suite: str, keyring: Keyring) -> Keyring:
    index = repository.fetch_index(fetcher, suite, keyring)
    if index.expired:
        raise ImageError(f"{suite}'s InRelease has expired", "expired")
    # It is a package for all architectures, listed under each; older suites have no riscv64.
    listed, _ = repository.fetch_packages_file(fetcher, index, (ARCHITECTURE, "amd64", "all"))
    packages = repository.parse_packages(listed, re.compile(re.escape(_KEYRING)))
    (package,) = repository.closure(packages, _KEYRING, lambda name: False)
    path = fetcher.file(package.path, size=package.size, sha256=package.sha256)
    with storage_errors(cache_root()), Contents(store.downloads()) as files:
        files.add(path)
        for extension in ("pgp", "gpg"):
            name = f"usr/share/keyrings/{_KEYRING}.{extension}"
            if name in files:
                return Keyring(f"{_KEYRING} {package.version} ({suite})", files.read(name))
    raise ImageError(f"{_KEYRING} of {suite} holds no keyring", "signature")


def _up_to_date(packages: Sequence[Package]) -> Image | None:
    """The current image, if it is whole and was built from just these packages by this builder."""
    try:
        image = store.verify(NAME)
        same = [package["sha256"] for package in image.lock["packages"]] == [package.sha256 for package in packages]
        return image if same and image.lock["builder"] == builder_version() else None
    except (ImageError, KeyError, TypeError):
        return None


def builder_version() -> str:
    """Changes when what is built from given packages may change: a hash of this package's own source."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def write_boot_files(paths: Sequence[Path], directory: Path, progress: Progress) -> str:
    """Make ``kernel`` and ``initrd`` in ``directory`` out of packages; gives the kernel's version (``uname -r``)."""
    with Contents(directory) as contents:
        progress.stage("unpacking packages")
        for path in paths:
            contents.add(path)
        version = _one_kernel(contents)
        progress.stage(f"building the image for Linux {version}")
        (directory / store.KERNEL).write_bytes(kernel.flat_image(contents.read(_kernel_path(contents, version))))
        _build_initrd(contents, version, directory / store.INITRD)
    return version


def package_version(packages: Sequence[dict[str, Any]]) -> str | None:
    """The version of the kernel's package among those of a lock file."""
    return next((each["version"] for each in packages if _KERNEL_PACKAGE.fullmatch(each["name"])), None)


def _build(paths: Sequence[Path], origin: dict[str, Any], progress: Progress) -> Image:
    with storage_errors(cache_root()), store.staging(NAME) as directory:
        version = write_boot_files(paths, directory, progress)
        description = {
            "name": NAME,
            "version": package_version(origin["packages"]) or version,
            "arch": ARCHITECTURE,
            "kernel_version": version,
            "suite": origin["suite"],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "append": APPEND,
        }
        store.write_json(directory / store.IMAGE_JSON, description)
        files = store.describe_files(directory, (store.KERNEL, store.INITRD, store.IMAGE_JSON))
        lock = {"format": 1, "builder": builder_version(), **origin, "files": files}
        store.write_json(directory / store.LOCK_JSON, lock)
        return store.publish(NAME, directory)


def _one_kernel(contents: Contents) -> str:
    versions = modules.kernel_versions(contents)
    if len(versions) != 1:
        raise ImageError(
            f"the packages hold kernels {', '.join(sorted(versions))}: give one"
            if versions
            else "the packages hold no kernel: linux-binary-* or linux-image-* is missing",
            "usage",
        )
    return versions.pop()


def _first(contents: Contents, what: str, paths: Sequence[str]) -> str:
    for path in paths:
        if path in contents:
            return path
    raise ImageError(f"the packages hold no {what} (looked for {', '.join(paths)})", "usage")


def _kernel_path(contents: Contents, version: str) -> str:
    base = f"usr/lib/modules/{version}"
    names = [f"{base}/vmlinuz", f"{base}/vmlinux", f"boot/vmlinuz-{version}", f"boot/vmlinux-{version}"]
    return _first(contents, "kernel", names)


def _build_initrd(contents: Contents, version: str, path: Path) -> None:
    busybox = contents.read(_first(contents, "busybox", ["usr/bin/busybox"]))
    builtin = f"usr/lib/modules/{version}/modules.builtin"
    with path.open("wb") as stream:
        initramfs.write(
            stream,
            busybox,
            version,
            modules.collect(contents, version),
            contents.read(builtin).decode() if builtin in contents else None,
        )
