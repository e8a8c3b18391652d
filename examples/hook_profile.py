"""Where a guest's kernel spends its time: a flame graph (SVG), to be looked at with a browser."""

import sys
from pathlib import Path

import polyvisor
from polyvisor.vm.analysis.profile import Profile

result = Path(sys.argv[1] if len(sys.argv) > 1 else "profile.svg")
with polyvisor.VM("debian", cpus=2) as vm:
    with Profile(vm, interval=0.002) as profile:
        vm.run("for i in 1 2 3 4 5 6; do ls -lR /sys/class /bin > /dev/null; done", check=True)
    for name, samples in profile.top(5):
        print(f"{samples:6} {name}")
    result.write_text(profile.svg("ls -lR"))
    result.with_suffix(".collapsed").write_text(profile.collapsed())
print(f"written to {result}")
