"""The benchmark suite: the same programs under polyvisor, QEMU and on the host. ``python -m benchmarks --help``."""
