"""Two Linux machines on a switch that loses every fourth frame one way, until it is told to stop."""

from __future__ import annotations

import polyvisor
from polyvisor.network.conditions import Conditions
from polyvisor.network.switch import Switch
from polyvisor.vm.equipment import Nic


def main() -> None:
    """Let one ping the other."""
    with Switch(seed=1) as switch:
        left, right = Nic(switch, address="10.0.0.1/24"), Nic(switch, address="10.0.0.2/24")
        left.set_conditions(Conditions(loss=0.25, delay=0.005))
        with (
            polyvisor.VM("debian", memory="256M", networks=[right]),
            polyvisor.VM("debian", memory="256M", networks=[left]) as vm,
        ):
            print(vm.run("ping -c 20 -i 0.1 -W 1 10.0.0.2 | tail -2").stdout)
            left.set_conditions(None)
            print(vm.run("ping -c 5 -i 0.1 10.0.0.2 | grep received").stdout)
            print(f"{left.port.sent} frames sent")


if __name__ == "__main__":
    main()
