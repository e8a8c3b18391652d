"""What an image is to be made of: a recipe, in TOML.

Every key that a recipe may have is a field of :class:`Recipe`; ``[[user]]`` and ``[[file]]`` are tables.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyvisor.images import ImageError
from polyvisor.images.resolver import parse_relations
from polyvisor.images.store import check_name
from polyvisor.vm.sizes import parse_size

BASES = ("required", "essential", "none")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
_LEAST_SIZE, _MOST_SIZE = 16 << 20, 1 << 40


@dataclass(frozen=True)
class User:
    """A user of the guest. An empty ``password`` logs in without one; None means that no password will do."""

    name: str
    password: str | None = ""
    groups: tuple[str, ...] = ()
    shell: str = "/bin/bash"


@dataclass(frozen=True)
class File:
    """A file of the guest at ``target``: the contents of ``source`` on the host, or ``text``. It belongs to root."""

    target: str
    source: Path | None = None
    text: str | None = None
    mode: int = 0o644

    def read(self) -> bytes:
        """Its contents. Raises :class:`ImageError` ("usage")."""
        if self.source is None:
            return (self.text or "").encode()
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise ImageError(f"file {self.source} of the recipe: {error.strerror}", "usage") from error


@dataclass(frozen=True)
class Recipe:
    """An image to be built.

    ``base``: which of Debian's packages are in it whatever else is: those of priority ``required`` with the
    ``essential`` ones (and apt), the latter alone, or ``none`` at all. ``packages`` are names, or relations such as
    ``python3 (>= 3.13)``; what they depend on comes with them, what they recommend does not. ``suites`` are tried in
    this order. ``size`` of the disk in bytes. ``root_password`` as in :class:`User`. ``run``: shell commands, run as
    root in the finished system. ``mirror``: where apt in the guest will look, when not where Debian's own example says.
    """

    name: str
    base: str = "required"
    packages: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    suites: tuple[str, ...] = ("sid",)
    size: int = 2 << 30
    hostname: str = "debian"
    root_password: str | None = ""
    users: tuple[User, ...] = ()
    files: tuple[File, ...] = ()
    run: tuple[str, ...] = ()
    mirror: str | None = None
    init: str = "/sbin/init"
    append: str = ""

    def __post_init__(self) -> None:
        """Raises :class:`ImageError` ("usage") for what no image can be."""
        check_name(self.name)
        _check(self.base in BASES, f"base {self.base!r}: there are {', '.join(BASES)}")
        _check(bool(self.suites), "suites: name at least one")
        for package in (*self.packages, *self.exclude):
            try:
                single = len(parse_relations(package)) == 1
            except ValueError:
                single = False
            _check(single, f"package {package!r}: give a name, or a relation such as python3 (>= 3.13)")
        for suite in self.suites:
            _check(bool(re.fullmatch(r"[a-z][a-z0-9-]*", suite)), f"suite {suite!r} is not the name of a suite")
        _check(bool(_HOST.fullmatch(self.hostname)), f"hostname {self.hostname!r} is not a name for a host")
        _check(
            _LEAST_SIZE <= self.size <= _MOST_SIZE and self.size % 4096 == 0,
            f"size of {self.size} bytes: give 16M to 1T, in whole pages of 4 KiB",
        )
        names = [user.name for user in self.users]
        for user in self.users:
            _check(bool(_USER.fullmatch(user.name)), f"user {user.name!r} is not a name for a user")
            _check(user.name != "root", "user root is there already: see root_password")
            _check(names.count(user.name) == 1, f"user {user.name!r} is there twice")
            for group in user.groups:
                _check(bool(_USER.fullmatch(group)), f"group {group!r} of user {user.name} is not a name for a group")
            _check(bool(re.fullmatch(r"/[\w./+-]+", user.shell)), f"shell {user.shell!r} is not an absolute path")
            _check((user.password or "").isprintable(), f"the password of user {user.name} has control characters")
        _check((self.root_password or "").isprintable(), "root_password has control characters")
        for file in self.files:
            parts = file.target.split("/")
            _check(
                file.target.startswith("/") and len(parts) > 1 and all(parts[1:]) and not {".", ".."} & set(parts)
                and file.target.isprintable(),
                f"file target {file.target!r} is not an absolute path of a file",
            )
            _check(
                parts[1] not in ("dev", "proc", "run", "sys", "tmp"),
                f"file target {file.target!r}: what is in /{parts[1]} is not on the disk",
            )
            _check((file.source is None) != (file.text is None), f"file {file.target}: give either source or text")
            _check(0 <= file.mode <= 0o7777, f"file {file.target}: mode {file.mode:o} is not one")
        for text in (self.init, self.append, self.mirror or ""):
            _check(text.isprintable(), f"{text!r} has control characters")
        _check(self.init.startswith("/") and " " not in self.init, f"init {self.init!r} is not an absolute path")

    def identity(self) -> dict[str, Any]:
        """All that the image depends on, files with the hash of what is in them: for lock files."""
        fields = dataclasses.asdict(self)
        fields["files"] = [
            {"target": file.target, "mode": file.mode, "sha256": hashlib.sha256(file.read()).hexdigest()}
            for file in self.files
        ]
        identity: dict[str, Any] = json.loads(json.dumps(fields))
        return identity


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file; its files' sources are relative to that. Raises :class:`ImageError` ("usage")."""
    try:
        with path.open("rb") as stream:
            fields = tomllib.load(stream)
    except OSError as error:
        raise ImageError(f"recipe {path}: {error.strerror}", "usage") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ImageError(f"recipe {path} is not TOML: {error}", "usage") from error
    try:
        return parse_recipe({"name": path.stem, **fields}, path.parent)
    except ImageError as error:
        raise ImageError(f"recipe {path}: {error}", "usage") from error


def parse_recipe(fields: Mapping[str, Any], directory: Path) -> Recipe:
    """A recipe from the keys and values of its file. Raises :class:`ImageError` ("usage")."""
    table = _Table("", fields)
    suites = table.take("suite", (str, list), "sid")
    password = table.take("root_password", (str, bool), "")
    recipe = Recipe(
        name=table.take("name", (str,)),
        base=table.take("base", (str,), "required"),
        packages=table.strings("packages"),
        exclude=table.strings("exclude"),
        suites=(suites,) if isinstance(suites, str) else _strings("suite", suites),
        size=size_in_bytes(table.take("size", (str,), "2G")),
        hostname=table.take("hostname", (str,), "debian"),
        root_password=_password(password, "root_password"),
        users=tuple(_user(each) for each in table.tables("user")),
        files=tuple(_file(each, directory) for each in table.tables("file")),
        run=table.strings("run"),
        mirror=table.take("mirror", (str, type(None)), None),
        init=table.take("init", (str,), "/sbin/init"),
        append=table.take("append", (str,), ""),
    )
    table.finish()
    return recipe


def size_in_bytes(text: str) -> int:
    """``2G`` in bytes, in whole pages. Raises :class:`ImageError` ("usage")."""
    try:
        return -(-parse_size(text) // 4096) * 4096
    except ValueError as error:
        raise ImageError(f"size {error}", "usage") from error


def parse_file(text: str) -> File:
    """``HOST:GUEST`` from a command line. Raises :class:`ImageError` ("usage")."""
    source, colon, target = text.rpartition(":")
    if not colon or not source or not target:
        raise ImageError(f"file {text!r}: give HOSTFILE:/PATH/IN/GUEST", "usage")
    path = Path(source)
    mode = 0o755 if path.exists() and path.stat().st_mode & 0o100 else 0o644
    return File(target, source=path, mode=mode)


def _user(table: _Table) -> User:
    user = User(
        name=table.take("name", (str,)),
        password=_password(table.take("password", (str, bool), ""), f"{table.where}password"),
        groups=table.strings("groups"),
        shell=table.take("shell", (str,), "/bin/bash"),
    )
    table.finish()
    return user


def _file(table: _Table, directory: Path) -> File:
    source = table.take("source", (str, type(None)), None)
    mode = table.take("mode", (str,), "644")
    if not re.fullmatch(r"[0-7]{3,4}", mode):
        raise ImageError(f"{table.where}mode {mode!r} is not one such as 755", "usage")
    file = File(
        target=table.take("target", (str,)),
        source=directory / source if source is not None else None,
        text=table.take("text", (str, type(None)), None),
        mode=int(mode, 8),
    )
    table.finish()
    return file


def _password(value: str | bool, what: str) -> str | None:
    if value is True:
        raise ImageError(f"{what}: give the password, an empty one, or false for none at all", "usage")
    return None if value is False else value


class _Table:
    """A table of a recipe: what is in it is taken out, and what is left over was not meant."""

    def __init__(self, where: str, fields: Mapping[str, Any]) -> None:
        self.where = where
        self._fields = dict(fields)

    def take(self, key: str, types: tuple[type, ...], *default: Any) -> Any:
        if key not in self._fields:
            if not default:
                raise ImageError(f"{self.where}{key} is missing", "usage")
            return default[0]
        value = self._fields.pop(key)
        if not isinstance(value, types):
            wanted = {str: "a string", list: "a list", bool: "true or false"}
            names = " or ".join(wanted[each] for each in types if each in wanted)
            raise ImageError(f"{self.where}{key}: {value!r} is not {names}", "usage")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        return _strings(f"{self.where}{key}", self.take(key, (list,), []))

    def tables(self, key: str) -> list[_Table]:
        found = self.take(key, (list,), [])
        for each in found:
            if not isinstance(each, dict):
                raise ImageError(f"{self.where}{key}: write [[{key}]] and its keys below", "usage")
        return [_Table(f"{key} {number}: ", each) for number, each in enumerate(found, start=1)]

    def finish(self) -> None:
        if self._fields:
            raise ImageError(f"{self.where}there is no key {', '.join(map(repr, sorted(self._fields)))}", "usage")


def _strings(what: str, values: Sequence[Any]) -> tuple[str, ...]:
    for value in values:
        if not isinstance(value, str):
            raise ImageError(f"{what}: {value!r} is not a string", "usage")
    return tuple(values)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ImageError(message, "usage")
