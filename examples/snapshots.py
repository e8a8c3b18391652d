"""A machine is prepared once; then each experiment begins where it was, in some hundredths of a second.

    python examples/snapshots.py
"""

import tempfile
from pathlib import Path

import polyvisor

with tempfile.TemporaryDirectory() as directory:
    prepared = Path(directory) / "prepared.pvsnap"
    with polyvisor.VM("debian", memory="256M") as vm:
        vm.run("mkdir /tmp/work; echo 1 > /tmp/work/number", check=True)
        vm.snapshot(prepared)

    for step in (10, 100):
        with polyvisor.VM.restore(prepared) as vm:
            vm.run(f"echo $(($(cat /tmp/work/number) + {step})) > /tmp/work/number", check=True)
            print(f"adding {step}: {vm.run('cat /tmp/work/number').stdout.strip()}")

            # Only what changed, on top of the first.
            last = vm.snapshot(Path(directory) / f"after-{step}.pvsnap", base=prepared)

    with polyvisor.VM.restore(last.path) as vm:
        print(f"and on from there: {vm.run('cat /tmp/work/number').stdout.strip()}")
