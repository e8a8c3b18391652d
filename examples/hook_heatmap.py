"""A picture of where the kernel's data are read (green) and written (red) while a command runs."""

import sys
from pathlib import Path

import polyvisor
from polyvisor.vm.analysis.heatmap import Heatmap

result = Path(sys.argv[1] if len(sys.argv) > 1 else "heatmap.png")
with polyvisor.VM("debian") as vm:
    data = range(vm.symbols["_sdata"], vm.symbols["_end"])
    with Heatmap(vm, data, cell=512) as heat:
        vm.run("ls -lR /bin > /dev/null", check=True)
    print(f"{sum(heat.reads)} reads, {sum(heat.writes)} writes")
    result.write_bytes(heat.png())
print(f"written to {result}")
