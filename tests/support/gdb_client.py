"""A small client of gdb's remote serial protocol."""

from __future__ import annotations

import socket


class Client:
    """Speaks the remote serial protocol."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(20)
        self.data = b""

    def send(self, text: str) -> None:
        body = text.encode()
        self.socket.sendall(b"$" + body + b"#%02x" % (sum(body) & 0xFF))

    def receive(self) -> str:
        while True:
            self.data = self.data.lstrip(b"+-")
            end = self.data.find(b"#")
            if self.data[:1] == b"$" and 0 < end <= len(self.data) - 3:
                body, self.data = self.data[1:end], self.data[end + 3 :]
                self.socket.sendall(b"+")
                return body.decode()
            part = self.socket.recv(4096)
            assert part, "the server hung up"
            self.data += part

    def ask(self, text: str) -> str:
        self.send(text)
        return self.receive()

    def register(self, number: int) -> int:
        return int.from_bytes(bytes.fromhex(self.ask(f"p{number:x}")), "little")
