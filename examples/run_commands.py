"""Boot Linux, run commands in it, move files, and look inside.

    python examples/run_commands.py
"""

import polyvisor

with polyvisor.VM("debian", cpus=2) as vm:
    print("kernel:", vm.run("uname -sm", check=True).stdout.strip())
    print("harts:", vm.run(["nproc"]).stdout.strip())

    # Input, output and status.
    result = vm.run("sort -n; echo done >&2; exit 3", input="10\n9\n8\n")
    print("sorted:", result.stdout.split(), result.stderr.strip(), result.exit_code)

    # A command that one talks to while it runs.
    with vm.popen("while read n; do echo $((n * n)); done") as process:
        for number in (2, 3, 4):
            process.write(f"{number}\n")
            print("square:", process.stdout.readline().strip())

    # Files, there and back.
    vm.write_file("/tmp/hello.sh", "#!/bin/sh\necho hello from $USER\n", mode=0o755)
    print("script:", vm.run("/tmp/hello.sh", user="nobody").stdout.strip())

    # What the kernel has in its memory.
    address = vm.symbols["linux_banner"]
    print("banner:", vm.memory.virtual()[address : address + 13].decode())
