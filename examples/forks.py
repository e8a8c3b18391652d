"""Prepare a machine once, then try several things from there, each in a copy of its own."""

import polyvisor

with polyvisor.VM("debian", memory="256M") as vm:
    vm.run("mkdir /tmp/d; touch /tmp/d/a /tmp/d/b /tmp/d/c", check=True)
    for fork in vm.fork(3, hostname="worker-{}"):
        fork.run(f"rm /tmp/d/{'abc'[fork.number]}", check=True)
        print(fork.run("echo $(hostname): $(ls /tmp/d)").stdout, end="")
        fork.kill()
    print("the machine:", vm.run("echo $(ls /tmp/d)").stdout.strip())
