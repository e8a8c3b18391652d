"""The profile of a machine."""

import json

from typer.testing import CliRunner

from polyvisor.cli.main import make_app
from tests.support.programs import POWER_OFF, elf

PROGRAM = """
    li a0, 0
    li t1, 300000
loop:
    addi t1, t1, -1
    bnez t1, loop
    j power_off
"""


def test_stats_are_written_and_shown(tmp_path):
    program = tmp_path / "p.elf"
    program.write_bytes(elf(PROGRAM + POWER_OFF))
    for tier in ("jit", "interpreter", "reference"):
        out = tmp_path / f"{tier}.json"
        text = PROGRAM.replace("300000", "300") if tier == "reference" else PROGRAM
        program.write_bytes(elf(text + POWER_OFF))
        arguments = ["run", str(program), "--tier", tier, "--stats", "--stats-json", str(out)]
        found = CliRunner().invoke(make_app(()), arguments)
        assert found.exit_code == 0, found.output
        stats = json.loads(out.read_text())
        count = 2 * (300 if tier == "reference" else 300_000)
        assert count < stats["instructions"] < count + 40
        assert stats["interpreter_instructions"] == stats["instructions"] - stats["region_instructions"]
        if tier != "reference":
            assert stats["exits"]["device write"] == 1
            assert stats["exits"]["new code page"] == 1
