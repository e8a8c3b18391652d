"""Record a run that nobody could repeat by hand, and look at it again: forwards, backwards, at any instruction."""

import tempfile
from pathlib import Path

import polyvisor

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "run.rec"
    with polyvisor.VM("debian", cpus=2, record=path) as vm:
        number = vm.run("head -c 8 /dev/urandom | od -An -tx8; date").stdout
    print(f"recorded {path.stat().st_size >> 20} MiB")

    # No image, no kernel, no network is needed from here on.
    with polyvisor.replay(path) as replay:
        replay.run()
        end = replay.count
        print(f"the same at {replay.checked} checkpoints")
        replay.goto(end // 2)
        pc = replay.cpu[0].pc, replay.cpu[1].pc
        replay.step(-1000)
        replay.step(1000)
        print("there and back:", (replay.cpu[0].pc, replay.cpu[1].pc) == pc)
