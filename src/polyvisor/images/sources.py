"""Which Debian mirror, keyring and proxies the host's own apt configuration names.

Formats: sources.list(5), both the one-line style and the deb822 style, and apt.conf(5) as printed by ``apt-config``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from debian.deb822 import Deb822

from .errors import ImageError

MIRROR_VARIABLE = "POLYVISOR_DEBIAN_MIRROR"
_APT = Path("/etc/apt")
_HOST_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
)


@dataclass(frozen=True)
class Source:
    """One enabled binary source of apt: an archive, the suites taken from it, and who may sign it.

    ``signed_by`` holds paths of keyrings, or one armored keyring itself; ``check_valid_until`` is False when the
    administrator told apt not to mind an index that has expired.
    """

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: tuple[str, ...] = ()
    check_valid_until: bool = True


@dataclass(frozen=True)
class Archive:
    """Where to fetch Debian from, and which files hold the keys that may sign it (or one armored keyring)."""

    uri: str
    keyrings: tuple[str, ...]
    check_valid_until: bool
    proxies: Mapping[str, str] = field(default_factory=dict)


def find_archive(mirror: str | None = None, keyring: Path | None = None, apt: Path = _APT) -> Archive:
    """The archive to use: ``mirror``, else $POLYVISOR_DEBIAN_MIRROR, else the one in the apt configuration ``apt``.

    Raises :class:`ImageError` ("usage") when there is none, ("signature") when there is no keyring for it.
    """
    configuration = apt_configuration()
    mirror = mirror or os.environ.get(MIRROR_VARIABLE)
    source: Source | None = None
    if mirror is None:
        source = debian_source(read_sources(apt))
        if source is None:
            raise ImageError(
                f"no Debian mirror in {apt}: pass --mirror URL or set {MIRROR_VARIABLE} (the URL ends in /debian)",
                "usage",
            )
        mirror = source.uri
    parts = urllib.parse.urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ImageError(f"{mirror!r} is not an http or https URL: pass --mirror URL", "usage")
    if keyring is not None:
        keyrings: tuple[str, ...] = (str(keyring),)
    elif source is not None and source.signed_by:
        keyrings = source.signed_by
    else:
        keyrings = tuple(str(path) for path in _HOST_KEYRINGS if path.exists())[:1]
    if not keyrings:
        raise ImageError(
            "this host has no Debian keyring to verify downloads with: install the package debian-archive-keyring "
            "or pass --keyring FILE",
            "signature",
        )
    # An administrator's choice for apt covers the archive that apt uses, not one that was named here.
    check = source is None or (
        source.check_valid_until and configuration.get("acquire::check-valid-until", "true") not in _FALSE
    )
    return Archive(mirror.rstrip("/"), keyrings, check, proxies_for(parts.hostname, configuration))


def debian_source(sources: list[Source]) -> Source | None:
    """The first of ``sources`` that is Debian's main archive, by the last component of its path."""
    for source in sources:
        path = urllib.parse.urlsplit(source.uri).path.rstrip("/")
        if path.rpartition("/")[2] == "debian" and "main" in source.components:
            return source
    return None


def read_sources(apt: Path = _APT) -> list[Source]:
    """All enabled sources of the apt configuration directory ``apt``, in apt's order. Unreadable files are skipped."""
    found: list[Source] = []
    parts = apt / "sources.list.d"
    paths = [apt / "sources.list", *(sorted(parts.iterdir()) if parts.is_dir() else ())]
    for path in paths:
        try:
            if path.suffix == ".list":
                found.extend(parse_one_line(path.read_text(errors="replace")))
            elif path.suffix == ".sources":
                found.extend(parse_deb822(path.read_text(errors="replace")))
        except OSError:
            continue
    return found


def parse_one_line(text: str) -> Iterator[Source]:
    """The sources in one-line style: ``deb [option=value ...] uri suite component ...``."""
    for line in text.splitlines():
        match = re.fullmatch(r"deb\s+(?:\[(.*?)\]\s*)?(\S+)\s+(\S+)((?:\s+\S+)*)", line.partition("#")[0].strip())
        if match is None:
            continue
        options = {}
        for option in (match[1] or "").split():
            key, _, value = option.partition("=")
            options[key.rstrip("+-").lower()] = value
        yield Source(
            match[2],
            (match[3],),
            tuple(match[4].split()),
            _keyrings(options.get("signed-by", "")),
            options.get("check-valid-until", "yes").lower() not in _FALSE,
        )


def parse_deb822(text: str) -> Iterator[Source]:
    """The sources in deb822 style: stanzas of ``Types``, ``URIs``, ``Suites``, ``Components``, ``Signed-By``."""
    # apt allows comments anywhere; a parser of control files need not.
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("#")]
    for stanza in Deb822.iter_paragraphs(lines, use_apt_pkg=False):
        if stanza.get("Enabled", "yes").lower() in _FALSE or "deb" not in stanza.get("Types", "").split():
            continue
        for uri in stanza.get("URIs", "").split():
            yield Source(
                uri,
                tuple(stanza.get("Suites", "").split()),
                tuple(stanza.get("Components", "").split()),
                _keyrings(stanza.get("Signed-By", "")),
                stanza.get("Check-Valid-Until", "yes").lower() not in _FALSE,
            )


_FALSE = ("no", "false", "0", "off", "without", "disable")


def _keyrings(value: str) -> tuple[str, ...]:
    """The ``Signed-By`` field: an armored key with a dot for each empty line, or paths; fingerprints name no file."""
    if "-----BEGIN PGP" in value:
        lines = (line.strip() for line in value.strip().splitlines())
        return ("\n".join("" if line == "." else line for line in lines) + "\n",)
    return tuple(word for word in re.split(r"[\s,]+", value) if word.startswith("/"))


def apt_configuration() -> dict[str, str]:
    """apt's configuration, keys in lower case; empty where there is no apt."""
    program = shutil.which("apt-config")
    if program is None:
        return {}
    try:
        result = subprocess.run([program, "dump"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_apt_configuration(result.stdout)


def parse_apt_configuration(text: str) -> dict[str, str]:
    """The output of ``apt-config dump``: lines ``Key::Sub "value";``."""
    configuration = {}
    for line in text.splitlines():
        match = re.fullmatch(r'(\S+) (".*");', line)
        if match:
            try:
                configuration[match[1].lower()] = "".join(shlex.split(match[2]))
            except ValueError:
                continue
    return configuration


def proxies_for(host: str, configuration: Mapping[str, str]) -> dict[str, str]:
    """The proxies (scheme -> URL) for ``host``: those of the environment, else those of apt's ``configuration``."""
    if urllib.request.proxy_bypass(host):
        return {}
    proxies = {scheme: url for scheme, url in urllib.request.getproxies().items() if scheme in ("http", "https")}
    for scheme in ("http", "https"):
        key = f"acquire::{scheme}::proxy"
        value = configuration.get(f"{key}::{host.lower()}") or configuration.get(key)
        if scheme not in proxies and value and value != "DIRECT":
            proxies[scheme] = value
    return proxies
