"""The benchmark suite's own logic: what it reads, computes and says. No guest is booted, no time asserted."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import build, catalogue, console, devices, guest, report, runner, suite
from benchmarks.console import Outcome
from benchmarks.errors import SuiteError
from polyvisor.images import cpio

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {program.name: program for program in catalogue.PROGRAMS}


def times(*seconds: float | None) -> list[Outcome | None]:
    return [None if each is None else Outcome("ab", each) for each in seconds]


def test_a_program_s_output_becomes_an_outcome() -> None:
    reader = console.Reader()
    lines = ("noise", "result 00", "begin", "[ 1.0] kernel noise", "result 12ab", "seconds 1.5", "result 99")
    for now, line in enumerate(lines):
        reader.line(line, float(now))
    assert reader.outcome(0) == Outcome("12ab", 2.0, 1.5)
    with pytest.raises(SuiteError, match="status 3"):
        reader.outcome(3)


def test_a_program_without_a_result_is_an_error() -> None:
    reader = console.Reader()
    reader.line("begin", 1.0)
    with pytest.raises(SuiteError, match="no result"):
        reader.outcome(0)


def test_lines_arrive_whole_and_the_end_of_a_pipe_is_an_error() -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"one\r\ntw")
        lines = console.Lines(reading)
        assert lines.next(deadline=1e18 // 1e9)[1] == "one"
        os.write(writing, b"o\n")
        assert lines.next(deadline=1e9)[1] == "two"
        with pytest.raises(SuiteError, match="too long"):
            lines.next(deadline=0)
        os.close(writing)
        writing = -1
        with pytest.raises(SuiteError, match="ended"):
            lines.next(deadline=1e9)
        assert lines.tail == b"one\r\ntwo\n"
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


# What the guest's first process does, on the host.
FAKE_GUEST = r"""
echo "firmware noise"; echo "@ready 2"
while read -r number name arguments; do
    [ "$name" = off ] && exit 0
    echo "@start $number"
    case $name in
        good) echo begin; echo "result $arguments"; echo "seconds 0.25"; status=0 ;;
        *) status=7 ;;
    esac
    echo "@done $number $status"
done
"""


def test_a_guest_runs_programs_on_request() -> None:
    with console.Guest(["sh", "-c", FAKE_GUEST]) as machine:
        assert machine.harts == 2
        outcome = machine.run(["good", "5"], timeout=30)
        assert (outcome.result, outcome.guest) == ("5", 0.25)
        with pytest.raises(SuiteError, match="status 7"):
            machine.run(["bad"], timeout=30)


def test_a_guest_that_does_not_boot_says_what_it_printed() -> None:
    with pytest.raises(SuiteError, match=r"does not boot: the machine ended\n(.|\n)*kernel panic"):
        console.Guest(["sh", "-c", "echo kernel panic"])


def plan(script: str, names: list[str], runs: int = 2) -> runner.Plan:
    return runner.Plan(
        programs=[catalogue.Program(name, "system", f"{name}.sh", 5, "") for name in names],
        commands={"polyvisor": lambda cpus: ["sh", "-c", script], "qemu": lambda cpus: ["sh", "-c", FAKE_GUEST]},
        boots={},
        native=True,
        runs=runs,
        cpus=1,
        scale=1.0,
        timeout=30,
    )


def test_rounds_collect_outcomes_and_failures() -> None:
    results = runner.run(plan(FAKE_GUEST, ["good", "bad"]), lambda text: None)
    assert {name: len(runs) for name, runs in results.outcomes["good"].items()} == {"polyvisor": 2, "qemu": 2}
    assert all(run is not None and run.result == "5" for runs in results.outcomes["good"].values() for run in runs)
    assert results.outcomes["bad"] == {"polyvisor": [None, None], "qemu": [None, None]}
    assert len(results.failures) == 4 and "bad on polyvisor: it ended with status 7" in results.failures[0]


def test_different_results_are_a_failure() -> None:
    results = runner.run(plan(FAKE_GUEST.replace("$arguments", "wrong"), ["good"]), lambda text: None)
    (failure,) = results.failures
    assert failure == "good: the results differ: wrong on polyvisor; 5 on qemu"


def test_a_machine_that_does_not_boot_fails_every_program_of_the_round() -> None:
    results = runner.run(plan("echo no", ["good"], runs=1), lambda text: None)
    assert results.outcomes["good"]["polyvisor"] == [None]
    assert "does not boot" in results.failures[0]


def test_the_arithmetic_of_a_row() -> None:
    outcomes = {"sort": {"polyvisor": times(2, 4, 8), "qemu": times(1, None, 2), "native": times(0.5, 0.5, 0.5)}}
    (row,) = report.rows([PROGRAMS["sort"], PROGRAMS["lz"]], outcomes)
    assert row.seconds["polyvisor"] == report.Spread(4, 2, 8)
    assert row.seconds["qemu"] == report.Spread(1.5, 1, 2)
    assert row.ratio == report.Spread((0.5 + 0.25) / 2, 0.25, 0.5)  # of the rounds in which both ran
    assert row.share == report.Spread(0.125, 0.0625, 0.25)


def test_geometric_means_are_of_the_ratios_of_a_group() -> None:
    outcomes = {
        "sort": {"polyvisor": times(1), "qemu": times(4)},
        "lz": {"polyvisor": times(1), "qemu": times(1)},
        "nbody": {"polyvisor": times(2), "qemu": times(1)},
        "harts1": {"polyvisor": times(1), "qemu": times(100)},
    }
    means = report.means(report.rows(catalogue.PROGRAMS, outcomes))
    assert means["integer"]["ratio"] == pytest.approx(2)
    assert means["float"]["ratio"] == pytest.approx(0.5)
    assert means["all"]["ratio"] == pytest.approx((4 * 1 * 0.5) ** (1 / 3))
    assert "harts" not in means and "real" not in means
    assert report.geometric_mean([]) is None


def test_the_throughput_of_two_harts_is_twice_the_work_over_the_time() -> None:
    outcomes = {"harts1": {"polyvisor": times(1, 1), "qemu": times(1)}, "harts2": {"polyvisor": times(1, 2)}}
    assert report.hart_throughput(outcomes) == {"polyvisor": report.Spread(1.5, 1, 2)}


def test_the_table_and_the_json_hold_what_there_is() -> None:
    outcomes = {"xz": {"polyvisor": times(2.0), "qemu": times(3.0)}, "sort": {"polyvisor": times(None)}}
    table = report.rows(catalogue.PROGRAMS, outcomes)
    shown = report.text(table, outcomes)
    assert re.search(r"^xz +2.00 \(2.00..2.00\) +3.00 \(3.00..3.00\) +- +1.50 \(1.50..1.50\) +- +-$", shown, re.M)
    assert re.search(r"^sort +-", shown, re.M)
    document = report.as_json(table, outcomes, {"runs": 1}, ["sort on polyvisor: no"])
    assert document["programs"]["xz"]["ratio"] == {"median": 1.5, "min": 1.5, "max": 1.5}
    assert document["programs"]["sort"]["runs"] == {"polyvisor": [None]}
    assert document["failures"] == ["sort on polyvisor: no"]


def test_programs_are_chosen_by_group_and_pattern() -> None:
    assert [program.name for program in catalogue.select(only=["chase*"])] == ["chase", "chase_far"]
    assert {program.group for program in catalogue.select(["float", "real"])} == {"float", "real"}
    with pytest.raises(SuiteError, match="unknown group"):
        catalogue.select(["nonsense"])
    with pytest.raises(SuiteError, match="no program is called"):
        catalogue.select(only=["nonsense"])


def test_every_program_has_a_source_and_every_source_a_program() -> None:
    sources = {path.name for path in build.SOURCES.iterdir() if path.suffix in (".c", ".sh")}
    of_devices = {f"{name}.c" for name in devices.PROGRAMS}
    assert {program.source for program in catalogue.PROGRAMS if program.source} | of_devices == sources
    assert PROGRAMS["chase"].command(0.1) == ("chase", "1", "150")
    assert PROGRAMS["sort"].command(1e-9) == ("sort", "1")


def test_the_corpus_is_the_same_everywhere() -> None:
    text = guest.corpus(4096)
    assert len(text) == 4096 and text == guest.corpus(1 << 14)[:4096] and b"\n" in text


def test_the_archive_replaces_init_and_leaves_out_modules(tmp_path: Path) -> None:
    class Image:
        initrd = tmp_path / "initrd"

    with Image.initrd.open("wb") as stream:
        names = ("init", "usr/bin/busybox", "usr/lib/modules/1/x.ko")
        cpio.write(stream, [cpio.file(name, b"old") for name in names])
    (tmp_path / "sort").write_bytes(b"binary")
    guest.write_initramfs(tmp_path / "new", Image, {"sort": tmp_path / "sort"}, None)  # type: ignore[arg-type]
    members = {entry.name: entry for entry in cpio.read((tmp_path / "new").read_bytes())}
    assert members["init"].data == guest.INIT.encode()
    assert members["bench/sort"].data == b"binary" and members["bench/sort"].mode & 0o111
    assert "usr/bin/busybox" in members and "usr/lib/modules/1/x.ko" not in members and "bench/xz" not in members


def test_missing_tools_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert suite.main(["--only", "sort"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "qemu-system-riscv64 is missing: install it" in error
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert suite.main(["--only", "sort", "--machines", "polyvisor"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install ziglang" in error


def test_no_progress_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    terminal = suite.Terminal()
    terminal("working")
    terminal.clear()
    assert stream.getvalue() == ""


def test_it_starts_as_a_module() -> None:
    command = [sys.executable, "-m", "benchmarks", "--list", "--groups", "real"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["python", "xz", "gzip", "sqlite"]


@pytest.mark.parametrize("name", ["boot.py", "loops.py"])
def test_a_single_measurement_starts_as_a_script(name: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / name), "--help"]  # no module beside it may hide another
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
def test_a_program_compiles_and_computes_the_same_as_anywhere() -> None:
    (path,) = build.build(["bignum"], build.host_target()).values()
    assert console.run_natively([str(path), "10"], timeout=60).result == "2da0536906e5522a"
    with pytest.raises(SuiteError, match="status 2"):
        console.run_natively([str(path), "nonsense"], timeout=60)
