"""How much of the project a start of a machine takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from polyvisor.engine.image import renew_image
from polyvisor.engine.native import native_code
from polyvisor.isa.riscv import rv64
from support.guests import guest_image

SCRIPT = """
import json, sys, time
import polyvisor
vm = polyvisor.VM(kernel=sys.argv[1], initrd=sys.argv[2], agent=True)
if sys.argv[3] == "boot":
    vm.boot()
    vm.snapshot(sys.argv[4])
elif sys.argv[3] == "restore":
    vm = polyvisor.VM.restore(sys.argv[4])
else:
    vm.start()
    while not vm.machine.board.harts[0].cpu.retired:
        time.sleep(0.001)
print(json.dumps(sorted(sys.modules)))
vm.kill()
"""


def modules(how: str, snapshot: str) -> set[str]:
    """What a process has imported that has booted a guest (and kept it), only started it, or restored it."""
    image = guest_image()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(image.kernel), str(image.initrd), how, snapshot],
        check=True, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    return set(json.loads(done.stdout))


def test_a_guest_starts_without_a_compiler(tmp_path: Path) -> None:
    """And without what this one does not have: disks, cards, a screen, requests to its agent."""
    # All that a boot needs is in the cache of compiled code, and every handler: the workers of a process that has
    # just filled it may have ended before they got to the last ones.
    snapshot = str(tmp_path / "booted.pvsnap")
    modules("boot", snapshot)
    native = native_code(rv64)
    for index in range(len(native.table)):
        native.handler(index)
    renew_image(native.units, native.cache)
    found = modules("start", snapshot)
    assert not {name for name in found if name.partition(".")[0] in ("llvmlite", "elftools", "logging", "tarfile")}
    assert not sorted(found & {
        "polyvisor.adl.frontend", "polyvisor.adl.ssa", "polyvisor.adl.encoding", "polyvisor.adl.assembly",
        "polyvisor.engine.units", "polyvisor.engine.reference", "polyvisor.devices.pci.host",
        "polyvisor.devices.virtio.block", "polyvisor.guest.client", "polyvisor.guest.program",
        "polyvisor.network.switch", "polyvisor.vm.equipment", "polyvisor.isa.riscv.base", "dataclasses", "inspect",
    })
    found = modules("restore", snapshot)
    assert not {name for name in found if name.partition(".")[0] in ("llvmlite", "elftools", "logging", "dataclasses")}
    assert not sorted(found & {
        "polyvisor.engine.units", "polyvisor.devices.pci.host", "polyvisor.devices.virtio.block",
        "polyvisor.isa.riscv.base", "polyvisor.vm.snapshot.take", "polyvisor.vm.snapshot.writer",
        "polyvisor.vm.snapshot.disks", "datetime", "polyvisor.engine.conductor", "polyvisor.engine.outside",
        "polyvisor.engine.objectfile", "polyvisor.boards.linux_boot",
    })
