"""Three machines at once, with asyncio.

    python examples/async_machines.py
"""

import asyncio

import polyvisor


async def count_to(number: int) -> int:
    """What a machine of its own counts."""
    async with polyvisor.AsyncVM("debian", memory="256M", name=f"counter {number}") as vm:
        total = 0
        async with await vm.popen(f"seq 1 {number}") as process:
            async for line in process.lines():
                total += int(line)
        return total


async def main() -> None:
    print(await asyncio.gather(*(count_to(number) for number in (10, 100, 1000))))


asyncio.run(main())
