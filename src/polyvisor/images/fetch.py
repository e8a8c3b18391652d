"""Downloads over HTTP that resume where they stopped and are only ever believed by their hash.

A partial file is kept as ``SHA256.part``; the next attempt asks for the rest with a Range request (RFC 9110, section
14) and hashes the whole again.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from .errors import ImageError, storage_errors
from .progress import Progress

_CHUNK = 1 << 18
_ATTEMPTS = 4
_TIMEOUT = 60.0  # seconds without a byte


class Fetcher:
    """Fetches files below the URL ``base`` into ``directory``, through ``proxies`` (scheme -> URL)."""

    def __init__(
        self, base: str, directory: Path, progress: Progress, proxies: Mapping[str, str] | None = None
    ) -> None:
        self.base = base.rstrip("/")
        self.directory = directory
        self.progress = progress
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(dict(proxies or {})))
        self._opener.addheaders = [("User-Agent", "polyvisor")]

    def url(self, path: str) -> str:
        """Where ``path`` of the mirror is."""
        # "+" is common in Debian versions and means a space to some object stores unless it is escaped.
        return f"{self.base}/{urllib.parse.quote(path, safe='/~:')}"

    def small(self, path: str, limit: int = 1 << 24) -> bytes:
        """The contents of a small file of unknown hash, which the caller must verify.

        Raises :class:`ImageError`: "missing", "network", or "corrupt" when it is larger than ``limit`` bytes.
        """
        try:
            with self._open(path, fresh=True) as response:
                data: bytes = response.read(limit + 1)
        except (OSError, http.client.HTTPException) as error:
            raise self._network(path, error) from error
        if len(data) > limit:
            raise ImageError(f"{self.url(path)} is absurdly large; try another --mirror", "corrupt")
        return data

    def file(self, path: str, *, size: int, sha256: str) -> Path:
        """Fetch the file of ``size`` bytes and that SHA-256, unless it is here already; return where it is.

        Raises :class:`ImageError`: "missing", "network", "corrupt", "space" or "storage". What came through before a
        network error is kept for the next attempt; what turns out to be corrupt is deleted.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ImageError(f"the index gives no SHA-256 for {path}; try another --mirror", "corrupt")
        target = self.directory / sha256
        with storage_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if target.exists():
                if target.stat().st_size == size:
                    os.utime(target)  # still in use: see store.prune_downloads
                    return target
                target.unlink()
        part = self.directory / f"{sha256}.part"
        name = path.rpartition("/")[2]
        for attempt in range(1, _ATTEMPTS + 1):
            resumed = part.exists()
            try:
                digest = self._transfer(path, name, part, size)
                if digest == sha256 or not resumed:
                    break
                # The old part may be what is wrong, for instance after a power cut: once more from the start.
                with storage_errors(self.directory):
                    part.unlink()
            except ImageError as error:
                if error.kind == "corrupt":
                    part.unlink(missing_ok=True)
                if error.kind != "network" or attempt == _ATTEMPTS:
                    raise
                self.progress.stage(f"{name}: connection lost, resuming")
                time.sleep(0.2 * attempt)
        with storage_errors(self.directory):
            if digest != sha256:
                part.unlink(missing_ok=True)
                raise self._corrupt(path)
            part.replace(target)
        return target

    def _transfer(self, path: str, name: str, part: Path, size: int) -> str:
        """Bring ``part`` to ``size`` bytes; return its SHA-256."""
        with storage_errors(self.directory), part.open("a+b") as stream:
            stream.seek(0, 2)
            if stream.tell() > size:
                stream.truncate(0)
            stream.seek(0)
            digest = hashlib.sha256()
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
            done = stream.tell()
            self.progress.transfer(name, done, size)
            if done < size:
                digest = self._receive(path, name, stream, done, size, digest)
        return digest.hexdigest()

    def _receive(
        self, path: str, name: str, stream: BinaryIO, done: int, size: int, digest: hashlib._Hash
    ) -> hashlib._Hash:
        try:
            response = self._open(path, done)
        except (OSError, http.client.HTTPException) as error:
            raise self._network(path, error) from error
        with response:
            if done and not (
                response.status == 206 and str(response.headers.get("Content-Range", "")).startswith(f"bytes {done}-")
            ):
                stream.truncate(0)  # a server without ranges sends all of it again
                done, digest = 0, hashlib.sha256()
            promised = response.headers.get("Content-Length", "")
            if promised.isdigit() and done + int(promised) != size:
                # Not worth waiting for: what this server has under that name is another file.
                raise self._corrupt(path)
            while done < size:
                try:
                    chunk = response.read(min(_CHUNK, size - done))
                except (OSError, http.client.HTTPException) as error:
                    raise self._network(path, error) from error
                if not chunk:
                    raise ImageError(
                        f"{self.url(path)} ended after {done} of {size} bytes: run the command again to resume",
                        "network",
                    )
                stream.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                self.progress.transfer(name, done, size)
        return digest

    def _open(self, path: str, offset: int = 0, *, fresh: bool = False) -> http.client.HTTPResponse:
        request = urllib.request.Request(self.url(path))
        if fresh:
            request.add_header("Cache-Control", "max-age=0")  # a proxy's old index helps nobody
        if offset:
            request.add_header("Range", f"bytes={offset}-")
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (403, 404, 410, 416):
                # 416 is a file shorter than the index says: like 404, a mirror in the middle of an update.
                raise ImageError(
                    f"{self.url(path)}: the server says {error.code} {error.reason}; the mirror is being updated or "
                    "lacks the suite; try --suite or another --mirror",
                    "missing",
                ) from error
            raise ImageError(
                f"{self.url(path)}: the server says {error.code} {error.reason}; try again later or another --mirror",
                "network",
            ) from error
        return response

    def _corrupt(self, path: str) -> ImageError:
        return ImageError(
            f"{self.url(path)} is not the file in the signed index: the mirror is being updated or the network changed "
            "it; try again later or another --mirror",
            "corrupt",
        )

    def _network(self, path: str, error: Exception) -> ImageError:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return ImageError(
            f"cannot fetch {self.url(path)}: {reason or type(error).__name__}; check the network and http_proxy, or "
            "pass another --mirror; run the command again to resume",
            "network",
        )
