"""Two Linux machines on a switch that loses every fourth frame one way."""

from __future__ import annotations

from polyvisor import images
from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.virtio.net import NetDevice
from polyvisor.network.conditions import Conditions
from polyvisor.network.switch import Switch, SwitchPort
from polyvisor.vm.machine import Machine


def boot(port: SwitchPort, output: bytearray, command: str) -> Machine:
    """A Debian on ``port`` that runs a command and powers off."""
    image = images.ensure("debian")
    config = VirtConfig(memory=256 << 20, devices=(lambda: NetDevice(port),))
    machine = Machine(config, output.extend)
    line = image.command_line(run=command)
    machine.board.load_linux(image.kernel.read_bytes(), image.initrd.read_bytes(), line)
    machine.start()
    return machine


def main() -> None:
    """Let one ping the other."""
    with Switch(seed=1) as switch:
        left, right = switch.port("left"), switch.port("right")
        left.outgoing = Conditions(loss=0.25, delay=0.005)
        output = bytearray()
        ping = "until ping -c 1 -W 1 10.0.0.2; do :; done > /dev/null; ping -c 20 -i 0.1 -W 1 10.0.0.2 | tail -2"
        with (
            boot(right, bytearray(), "ip addr add 10.0.0.2/24 dev eth0; sleep 3600"),
            boot(left, output, f"ip addr add 10.0.0.1/24 dev eth0; {ping}") as pinging,
        ):
            pinging.wait()
        print(output.decode())
        print(f"{left.sent} frames sent, {left.lost} of them lost")


if __name__ == "__main__":
    main()
