"""A Debian repository: from a signed InRelease file to the packages of a suite.

Format: the page DebianRepository/Format of Debian's wiki, and deb822(5). The chain of trust is: keyring -> InRelease ->
(SHA-256) Packages.xz -> (SHA-256) .deb.
"""

from __future__ import annotations

import hashlib
import lzma
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from debian.deb822 import Packages, Release
from debian.debian_support import Version

from .errors import ImageError
from .fetch import Fetcher
from .signature import Keyring


@dataclass(frozen=True)
class Index:
    """A verified InRelease file. ``files`` maps a path below the suite to its (size in bytes, SHA-256)."""

    suite: str
    path: str
    date: str
    valid_until: str | None
    expired: bool
    sha256: str
    signers: tuple[str, ...]
    by_hash: bool
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Package:
    """A binary package in an index; ``path`` is below the mirror's URL, ``size`` in bytes."""

    name: str
    version: str
    architecture: str
    path: str
    size: int
    sha256: str
    depends: tuple[tuple[str, str | None], ...]
    """(name, exact version or None) of the first alternative of each dependency, Pre-Depends included."""


def fetch_index(fetcher: Fetcher, suite: str, keyring: Keyring) -> Index:
    """Fetch and verify the InRelease file of ``suite``.

    An index that has expired is returned too, with ``expired`` set. Raises :class:`ImageError`: those of
    :meth:`Fetcher.small` and :meth:`Keyring.verify`, and "corrupt" when the file is about another suite.
    """
    path = f"dists/{suite}/InRelease"
    message = fetcher.small(path)
    signed = keyring.verify(f"{suite}'s InRelease", message)
    release = Release(signed.text.decode(errors="replace"))
    if suite not in (release.get("Suite"), release.get("Codename")):
        # A signature does not say which suite: without this, a mirror could pass off an old one as a new one.
        raise ImageError(
            f"{fetcher.url(path)} is about suite {release.get('Codename')!r}; try another --mirror", "corrupt"
        )
    valid_until = release.get("Valid-Until")
    return Index(
        suite=suite,
        path=path,
        date=release.get("Date", ""),
        valid_until=valid_until,
        expired=valid_until is not None and _time(valid_until) < datetime.now(UTC),
        sha256=hashlib.sha256(message).hexdigest(),
        signers=signed.signers,
        by_hash=release.get("Acquire-By-Hash", "no").lower() == "yes",
        files={entry["name"]: (int(entry["size"]), entry["sha256"].lower()) for entry in release.get("SHA256") or ()},
    )


def _time(text: str) -> datetime:
    try:
        return parsedate_to_datetime(text.replace("UTC", "+0000"))
    except ValueError as error:
        raise ImageError(f"{text!r} in InRelease is not a time; try another --mirror", "corrupt") from error


def fetch_packages_file(fetcher: Fetcher, index: Index, architectures: Iterable[str]) -> tuple[Path, str]:
    """The ``Packages.xz`` of component main, and its path in the suite: of the first of ``architectures`` that the
    suite has.

    Raises :class:`ImageError`: "missing", "corrupt", "network".
    """
    for architecture in architectures:
        name = f"main/binary-{architecture}/Packages.xz"
        if name in index.files:
            break
    else:
        raise ImageError(f"suite {index.suite} has no packages for {', '.join(architectures)}; pass --suite", "missing")
    size, sha256 = index.files[name]
    plain = f"dists/{index.suite}/{name}"
    path = f"{plain.rpartition('/')[0]}/by-hash/SHA256/{sha256}" if index.by_hash else plain
    try:
        compressed = fetcher.file(path, size=size, sha256=sha256)
    except ImageError as error:
        if path == plain or error.kind != "missing":
            raise
        path = plain  # some caches do not carry by-hash; the hash is checked all the same
        compressed = fetcher.file(path, size=size, sha256=sha256)
    return compressed, name


def parse_packages(compressed: Path, wanted: re.Pattern[str]) -> dict[str, list[Package]]:
    """The stanzas of a ``Packages.xz`` whose package name matches ``wanted``, newest version first."""
    try:
        with lzma.open(compressed) as stream:
            text = stream.read().decode(errors="replace")
    except (lzma.LZMAError, EOFError) as error:
        raise ImageError(f"the package index is not xz data ({error}); try another --mirror", "corrupt") from error
    found: dict[str, list[Package]] = {}
    # Of seventy thousand stanzas a handful is wanted, so only those are parsed.
    for match in re.finditer(r"^Package: (.+)\n(?:.+\n?)*", text, re.MULTILINE):
        if wanted.fullmatch(match[1]):
            package = _package(Packages(match[0]))
            found.setdefault(package.name, []).append(package)
    for versions in found.values():
        versions.sort(key=lambda package: Version(package.version), reverse=True)
    return found


def _package(stanza: Packages) -> Package:
    depends = []
    for alternatives in (*(stanza.relations["pre-depends"] or ()), *(stanza.relations["depends"] or ())):
        first = alternatives[0]
        relation = first.get("version")
        depends.append((first["name"], relation[1] if relation and relation[0] == "=" else None))
    try:
        return Package(
            name=stanza["Package"],
            version=stanza["Version"],
            architecture=stanza["Architecture"],
            path=stanza["Filename"],
            size=int(stanza["Size"]),
            sha256=stanza["SHA256"].lower(),
            depends=tuple(depends),
        )
    except (KeyError, ValueError) as error:
        raise ImageError(
            f"the index entry of {stanza.get('Package')} lacks a good {error}; try another --mirror", "corrupt"
        ) from error


def closure(packages: dict[str, list[Package]], root: str, follow: Callable[[str], bool]) -> list[Package]:
    """``root`` (its newest version) and all packages it depends on, directly or not, whose names ``follow`` accepts.

    Raises :class:`ImageError` ("missing") when the root or a followed package, in the exact version asked for, is not
    in the index - as in the hours while a new kernel is being built for all architectures.
    """
    chosen: dict[str, Package] = {}
    queue: list[tuple[str, str | None]] = [(root, None)]
    while queue:
        name, version = queue.pop(0)
        if name in chosen:
            continue
        for package in packages.get(name, ()):
            if version is None or package.version == version:
                break
        else:
            raise ImageError(
                f"package {name}{f' {version}' if version else ''} is not in the index; pass another --suite", "missing"
            )
        chosen[name] = package
        queue.extend(dependency for dependency in package.depends if follow(dependency[0]))
    return list(chosen.values())
