"""Boot two machines once, and look from there for a run in which a network loses just the wrong frames."""

import tempfile
from pathlib import Path
from typing import Any

import polyvisor
from polyvisor.network.conditions import Conditions
from polyvisor.vm.equipment import Nic

group = polyvisor.Group()
switch = group.switch()
for number, name in enumerate(("one", "two"), 1):
    nic = Nic(switch, name=name, address=f"10.0.0.{number}/24")
    nic.set_conditions(Conditions(loss=0.2, delay=0.002))
    polyvisor.VM("debian", memory="128M", networks=[nic], name=name, group=group)


def check(fork: Any) -> bool:
    """One of three requests should be answered."""
    return fork.machines["one"].run("ping -c 3 -i 0.1 -W 1 10.0.0.2 > /dev/null").ok


with tempfile.TemporaryDirectory() as directory:
    with group:
        group.machines["one"].run("until ping -c 1 10.0.0.2; do :; done")
        found = polyvisor.search(group, check, keep=Path(directory) / "lost.rec")
    assert found is not None
    print(f"with seed {found.seed}: {found.reason}")
    with polyvisor.replay_group(found.recording, backwards=False) as replay:
        replay.run()
        print(f"both machines are the same again: {replay.checked > 0}")
