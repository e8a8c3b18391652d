"""How large a data cache should be for what a guest does: three sizes, simulated at once."""

import polyvisor
from polyvisor.vm.analysis.cache import CacheSimulation

SIZES = (4, 16, 64)  # KiB
with polyvisor.VM("debian") as vm:
    caches = [CacheSimulation(vm, size=size << 10, ways=4) for size in SIZES]
    vm.run("ls -lR /bin > /dev/null", check=True)
    for size, cache in zip(SIZES, caches, strict=True):
        cache.stop()
        print(f"{size:3} KiB: {cache.accesses} accesses, {100 * cache.miss_rate:.2f} % missed")
    rates = [cache.miss_rate for cache in caches]
print("larger is better:", rates == sorted(rates, reverse=True))
