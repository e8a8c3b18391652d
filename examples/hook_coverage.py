"""Which lines of a bare-metal program were executed: reports for lcov (genhtml) and for CI servers (Cobertura).

python examples/hook_coverage.py program.elf    # compiled with -g
"""

import sys
from pathlib import Path

import polyvisor
from polyvisor.vm.analysis.coverage import Coverage

program = Path(sys.argv[1])
vm = polyvisor.VM(program=program)
coverage = Coverage(vm, program)  # from the first instruction on
vm.start().wait(60)
for name, file in coverage.files().items():
    print(f"{Path(name).name}: {file.covered} of {len(file.lines)} lines")
    print("never called:", ", ".join(function for function, (_, count) in file.functions.items() if not count))
program.with_suffix(".info").write_text(coverage.lcov())
program.with_suffix(".xml").write_text(coverage.cobertura())
print(f"exit code {vm.exit_code}")
