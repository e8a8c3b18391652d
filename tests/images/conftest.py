from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pysequoia
import pytest
from fake_mirror import Server, generate_key, public


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no influence of the host's configuration."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("POLYVISOR_CACHE", str(directory))
    for name in ("POLYVISOR_DEBIAN_MIRROR", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return directory


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def key() -> pysequoia.Tsk:
    return generate_key()


@pytest.fixture
def keyring(tmp_path: Path, key: pysequoia.Tsk) -> Path:
    path = tmp_path / "keyring.pgp"
    path.write_bytes(public(key))
    return path


@pytest.fixture
def guests() -> Path:
    """The directory of frozen guest packages for riscv64."""
    default = Path(__file__).parents[2].parent / "shared" / "guests"
    directory = Path(os.environ.get("POLYVISOR_GUESTS", default)) / "riscv64"
    if not directory.is_dir():
        pytest.skip("no frozen guest packages: set POLYVISOR_GUESTS")
    return directory


class Record:
    """Progress that remembers its stages."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.transfers: list[tuple[str, int, int]] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def transfer(self, name: str, done: int, total: int) -> None:
        self.transfers.append((name, done, total))


@pytest.fixture
def record() -> Record:
    return Record()
