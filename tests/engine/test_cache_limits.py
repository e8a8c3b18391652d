"""The cache of compiled code as a whole: bounded, countable, removable."""

import json
import os
import time

from typer.testing import CliRunner

from polyvisor.cli.main import make_app
from polyvisor.engine.codecache import CodeCache, clear, contents


def filled(root, key, names, size=1000):
    cache = CodeCache(key, root)
    for age, name in enumerate(reversed(names)):
        cache.put(name, bytes(size))
        when = time.time() - 1000 * (age + 1)
        os.utime(cache._path(name), (when, when))
    return cache


def test_what_was_not_used_for_longest_goes_first_and_other_keys_before_the_own(tmp_path):
    filled(tmp_path, "other", ["handler a", "handler b"])
    own = filled(tmp_path, "own", ["region old", "region new"])
    assert own.trim(10_000) == 0
    assert own.trim(3_000) > 0
    assert CodeCache("other", tmp_path).get("handler a") is None
    assert own.get("region new") is not None
    own.trim(1_200)
    assert own.get("region old") is None
    assert own.get("region new") is None  # only four fifths of the limit are left


def test_a_unit_that_is_used_is_marked_so(tmp_path):
    cache = filled(tmp_path, "key", ["region a"])
    long_ago = time.time() - 10 * 86_400
    os.utime(cache._path("region a"), (long_ago, long_ago))
    assert cache.get("region a") is not None
    assert cache._path("region a").stat().st_mtime > long_ago + 86_400


def test_contents_are_counted_by_kind_and_can_be_cleared(tmp_path):
    filled(tmp_path, "key", ["region a", "region b", "handler 1 addi", "core"])
    (found,) = contents(tmp_path)
    assert {kind: count for kind, (count, _) in found.kinds.items()} == {"core": 1, "handler": 1, "region": 2}
    assert clear(tmp_path) == found.size
    assert contents(tmp_path) == []
    assert clear(tmp_path) == 0


def test_the_command_shows_and_clears(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYVISOR_CACHE", str(tmp_path))
    filled(tmp_path, "rv64-x", ["region a", "core"])
    shown = CliRunner().invoke(make_app(()), ["cache", "--json"])
    assert shown.exit_code == 0
    found = json.loads(shown.output)
    assert found["keys"][0]["kinds"]["region"]["count"] == 1
    assert found["keys"][0]["current"] is False
    assert "1 core, 1 region" in CliRunner().invoke(make_app(()), ["cache"]).output
    assert CliRunner().invoke(make_app(()), ["cache", "clear"]).exit_code == 0
    assert contents(tmp_path) == []
