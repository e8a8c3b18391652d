"""A Debian mirror in miniature: packages, signed indexes and an HTTP server, all made up here."""

from __future__ import annotations

import hashlib
import io
import lzma
import struct
import tarfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pysequoia
import zstandard

VERSION = "9.9.9-riscv64"
BUSYBOX = b"\x7fELF rest of a program [\0[[\0ash\0base64\0cat\0sh\0vi\0\0more"
KERNEL = bytes(0x38) + b"RSC\x05" + bytes(100)


def module(depends: str = "", aliases: tuple[str, ...] = ()) -> bytes:
    """An ELF file with nothing but a .modinfo section."""
    info = b"".join(f"{text}\0".encode() for text in (f"depends={depends}", *(f"alias={alias}" for alias in aliases)))
    names = b"\0.modinfo\0.shstrtab\0"
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 243, 1, 0, 0, 64 + len(info) + len(names), 0, 64, 0, 0, 64, 3, 2
    )
    sections = [(0, 0, 0, 0), (1, 1, 64, len(info)), (10, 3, 64 + len(info), len(names))]
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, 0, 0, 1, 0) for name, kind, offset, size in sections
    )
    return header + info + names + table


def tar(files: Mapping[str, bytes | str]) -> bytes:
    """Files, executable ones if they are programs or scripts; text is the target of a symbolic link."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
                archive.addfile(member)
                continue
            member.size = len(data)
            member.mode = 0o755 if data.startswith((b"#!", b"\x7fELF")) else 0o644
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def deb(name: str, version: str, files: Mapping[str, bytes | str], compression: str = "xz") -> bytes:
    compress = {"xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress, "": bytes}[compression]
    control = f"Package: {name}\nVersion: {version}\nArchitecture: riscv64\nDescription: made up\n".encode()
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(tar({"control": control})),
        f"data.tar{'.' if compression else ''}{compression}": compress(tar(files)),
    }
    out = b"!<arch>\n"
    for member, data in members.items():
        out += (
            f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return out


def kernel_files(version: str = VERSION) -> dict[str, bytes]:
    base = f"usr/lib/modules/{version}/kernel"
    return {
        f"{base}/drivers/virtio_mmio.ko.xz": lzma.compress(module()),
        f"{base}/fs/ext4/ext4.ko.xz": lzma.compress(module("jbd2,crc-16")),
        f"{base}/fs/jbd2.ko": module("crc-16"),
        f"{base}/lib/crc-16.ko": module(),
        f"{base}/drivers/virtio-gpu.ko": module(aliases=("virtio:d00000010v*",)),
        f"{base}/drivers/unrelated.ko": module(),
        f"usr/lib/modules/{version}/modules.builtin": b"kernel/drivers/virtio/virtio_pci.ko\n",
    }


def generate_key() -> pysequoia.Tsk:
    return pysequoia.Tsk.generate("Archive <archive@example.invalid>")


def public(key: pysequoia.Tsk) -> bytes:
    return bytes(key.extract_certificate())


@dataclass
class Suite:
    """What one suite publishes; :meth:`files` gives it as paths and contents."""

    name: str
    key: pysequoia.Tsk
    debs: list[tuple[str, str, str, bytes]] = field(default_factory=list)  # name, version, depends, contents
    valid_for: timedelta = timedelta(days=7)
    claims: str | None = None  # the codename in InRelease, when it is not the suite's

    def files(self) -> dict[str, bytes]:
        files = {}
        stanzas = []
        for name, version, depends, data in self.debs:
            path = f"pool/main/{self.name}/{name}_{version}_riscv64.deb"
            files[path] = data
            stanzas.append(
                f"Package: {name}\nVersion: {version}\nArchitecture: riscv64\n"
                + (f"Depends: {depends}\n" if depends else "")
                + f"Filename: {path}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
            )
        packages = lzma.compress("\n".join(stanzas).encode())
        digest = hashlib.sha256(packages).hexdigest()
        listed = "main/binary-riscv64/Packages.xz"
        now = datetime.now(UTC)

        def stamp(time: datetime) -> str:
            return time.strftime("%a, %d %b %Y %H:%M:%S UTC")

        release = (
            f"Origin: Debian\nSuite: {self.claims or self.name}\nCodename: {self.claims or self.name}\n"
            f"Date: {stamp(now)}\nValid-Until: {stamp(now + self.valid_for)}\nAcquire-By-Hash: yes\n"
            f"SHA256:\n {digest} {len(packages)} {listed}\n"
        )
        base = f"dists/{self.name}"
        files[f"{base}/InRelease"] = pysequoia.sign(
            self.key.signer(), release.encode(), mode=pysequoia.SignatureMode.CLEAR
        )
        files[f"{base}/main/binary-riscv64/by-hash/SHA256/{digest}"] = packages
        return files


def debian_suite(name: str, key: pysequoia.Tsk, version: str = "9.9.9-1") -> Suite:
    """A suite with a kernel in the split layout and a busybox."""
    exact = f"(= {version})"
    return Suite(
        name,
        key,
        [
            ("linux-image-riscv64", version, f"linux-image-{VERSION} {exact}, linux-base-riscv64", b"unused"),
            (
                f"linux-image-{VERSION}",
                version,
                f"dracut | initramfs-tools, linux-binary-{VERSION} {exact}, linux-modules-{VERSION} {exact}",
                deb(f"linux-image-{VERSION}", version, {}),
            ),
            (
                f"linux-binary-{VERSION}",
                version,
                "",
                deb(f"linux-binary-{VERSION}", version, {f"usr/lib/modules/{VERSION}/vmlinuz": KERNEL}),
            ),
            (
                f"linux-modules-{VERSION}",
                version,
                "kmod",
                deb(f"linux-modules-{VERSION}", version, kernel_files(), "zst"),
            ),
            ("busybox-static", "1:1.0-1", "", deb("busybox-static", "1:1.0-1", {"bin/busybox": BUSYBOX}, "")),
        ],
    )


class Server:
    """Serves ``files`` at ``url``. ``cut`` maps a path to the number of bytes after which the connection is dropped,
    once; ``ranges`` says whether Range requests are honoured; ``log`` has (path, Range header or None) of each."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.ranges = True
        self.log: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/debian"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.removeprefix("/debian/").replace("%2B", "+")
        wanted = request.headers.get("Range")
        self.log.append((path, wanted))
        data = self.files.get(path)
        if data is None:
            request.send_error(404)
            return
        start = 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        request.wfile.write(data[start : self.cut.pop(path, len(data))])

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
