from __future__ import annotations

from pathlib import Path

import pytest

from polyvisor.images import ImageError, sources
from polyvisor.images.sources import Source, parse_deb822, parse_one_line


def test_one_line() -> None:
    text = """
# deb http://off.example.invalid/debian sid main
deb-src http://src.example.invalid/debian sid main
deb http://a.example.invalid/debian sid main contrib # and more
deb [arch=amd64,riscv64 signed-by=/k/a.gpg,/k/b.gpg check-valid-until=no] https://b.example.invalid/debian/ x/
nonsense
"""
    assert list(parse_one_line(text)) == [
        Source("http://a.example.invalid/debian", ("sid",), ("main", "contrib")),
        Source("https://b.example.invalid/debian/", ("x/",), (), ("/k/a.gpg", "/k/b.gpg"), False),
    ]


def test_deb822() -> None:
    text = """# a comment
Types: deb deb-src
URIs: http://a.example.invalid/debian
# in the middle
  http://b.example.invalid/debian
Suites: sid sid-updates
Components: main
Signed-By: /k/a.gpg

Types: deb
Enabled: no
URIs: http://off.example.invalid/debian
Suites: sid
Components: main

Types: deb-src
URIs: http://src.example.invalid/debian
Suites: sid
Components: main

Types: deb
URIs: http://c.example.invalid/debian
Suites: sid
Components: main
Check-Valid-Until: no
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQ==
 -----END PGP PUBLIC KEY BLOCK-----
"""
    first, second, third = parse_deb822(text)
    assert first == Source("http://a.example.invalid/debian", ("sid", "sid-updates"), ("main",), ("/k/a.gpg",))
    assert second.uri == "http://b.example.invalid/debian"
    assert third.signed_by == ("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQ==\n-----END PGP PUBLIC KEY BLOCK-----\n",)
    assert not third.check_valid_until


def write_sources(directory: Path) -> Path:
    parts = directory / "sources.list.d"
    parts.mkdir()
    (directory / "sources.list").write_text("deb http://other.example.invalid/tools stable main\n")
    (parts / "a.list").write_text("deb http://sec.example.invalid/debian-security sid main\n")
    (parts / "b.sources").write_text(
        "Types: deb\nURIs: http://deb.example.invalid/debian/\nSuites: sid\nComponents: main\nSigned-By: /k.gpg\n"
    )
    (parts / "c.list.off").write_text("deb http://off.example.invalid/debian sid main\n")
    return directory


def test_the_main_archive_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "apt_configuration", dict)
    archive = sources.find_archive(apt=write_sources(tmp_path))
    assert (archive.uri, archive.keyrings, archive.check_valid_until) == (
        "http://deb.example.invalid/debian",
        ("/k.gpg",),
        True,
    )


def test_apt_policy_holds_for_apts_archive_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "apt_configuration", lambda: {"acquire::check-valid-until": "false"})
    apt = write_sources(tmp_path)
    assert not sources.find_archive(apt=apt).check_valid_until
    other = sources.find_archive("http://m.example.invalid/debian", Path("/k"), apt=apt)
    assert other.check_valid_until and other.keyrings == ("/k",)


def test_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="--mirror"):
        sources.find_archive(apt=tmp_path)
    monkeypatch.setenv("POLYVISOR_DEBIAN_MIRROR", "ftp://example.invalid/debian")
    with pytest.raises(ImageError, match="not an http"):
        sources.find_archive(apt=tmp_path)


def test_no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_HOST_KEYRINGS", ())
    with pytest.raises(ImageError, match="--keyring") as caught:
        sources.find_archive("http://example.invalid/debian")
    assert caught.value.kind == "signature"


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    dump = """Acquire "";
Acquire::http::Proxy "http://proxy.example.invalid:3128/";
Acquire::http::Proxy::direct.example.invalid "DIRECT";
APT::NeverAutoRemove:: "a b";
"""
    configuration = sources.parse_apt_configuration(dump)
    assert sources.proxies_for("x.example.invalid", configuration) == {"http": "http://proxy.example.invalid:3128/"}
    assert sources.proxies_for("direct.example.invalid", configuration) == {}
    monkeypatch.setenv("http_proxy", "http://env.example.invalid:1/")
    assert sources.proxies_for("x.example.invalid", configuration) == {"http": "http://env.example.invalid:1/"}
