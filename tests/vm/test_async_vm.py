"""The VM object for asyncio, with Linux."""

from __future__ import annotations

import asyncio

import pytest

import polyvisor
from polyvisor.vm.asynchronous import AsyncVM
from polyvisor.vm.commands import DEFAULT
from support.guests import guest_image


async def count(vm: AsyncVM, words: str) -> int:
    """How many processes of the guest have ``words`` on their command lines."""
    return int((await vm.run(f"ps -o args | grep -c '[{words[0]}]{words[1:]}'")).stdout)


async def none_left(vm: AsyncVM, words: str) -> bool:
    for _ in range(100):
        if await count(vm, words) == 0:
            return True
        await asyncio.sleep(0.02)
    return False


async def use(vm: AsyncVM) -> None:
    await vm.boot()
    results = await asyncio.gather(*(vm.run(f"echo {number}; exit {number}") for number in range(30)))
    assert [(r.stdout, r.exit_code) for r in results] == [(f"{number}\n", number) for number in range(30)]
    with pytest.raises(polyvisor.CommandError):
        await vm.run("false", check=True)
    with pytest.raises(FileNotFoundError):
        await vm.read_file("/nosuch")
    await vm.write_file("/tmp/x", "y")
    assert await vm.read_file("/tmp/x") == b"y"

    # Cancelling what runs kills it, however early it comes.
    task = asyncio.create_task(vm.run("sleep 5432"))
    while not await count(vm, "sleep 5432"):
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await none_left(vm, "sleep 5432")
    for call in (vm.run, vm.popen):
        for delay in (0, 0.002, 0.01):
            task = asyncio.create_task(call("sleep 5433"))  # type: ignore[arg-type]
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.2)  # so that those which were on their way are there, if they came
    assert await none_left(vm, "sleep 5433")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(vm.run("sleep 5434"), 0.3)
    assert await none_left(vm, "sleep 5434")

    async with await vm.popen("while read line; do echo \"<$line>\"; done; exit 3") as process:
        await process.write("one\ntwo\n")
        process.close_stdin()
        assert [line async for line in process.lines()] == ["<one>\n", "<two>\n"]
        assert await process.wait() == 3 == process.exit_code
    async with await vm.popen("sleep 5435") as process:
        await process.send_signal(15)
        assert await process.wait(30) == -15

    vm.vm.console.sendline("echo typ''ed")
    assert (await vm.expect("typed"))[0] == b"typed"
    with pytest.raises(polyvisor.VMTimeoutError):
        await vm.wait(0.01)


def test_a_machine_for_asyncio() -> None:
    async def main() -> None:
        vm = AsyncVM(guest_image(), timeout=60)
        with pytest.raises(RuntimeError, match="not been booted"):
            await vm.run("true")
        async with vm:
            await use(vm)
        assert not vm.vm.running and vm.vm.exit_code == 0

    asyncio.run(main())


def test_stopping_gives_the_guest_as_long_as_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default that depends on the machine: services of a root disk's system need more than ten seconds."""
    asked: list[object] = []
    monkeypatch.setattr(polyvisor.VM, "stop", lambda self, timeout=None: asked.append(timeout))

    async def main() -> None:
        vm = AsyncVM(program=__file__)
        vm._vm = vm._make()
        await vm.stop()
        await vm.stop(timeout=3.0)
        await vm.stop(None)

    asyncio.run(main())
    assert asked == [DEFAULT, 3.0, None]


def test_cancelling_a_boot_ends_the_machine() -> None:
    async def main() -> None:
        vm = AsyncVM(guest_image())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), vm:
                await asyncio.sleep(60)
        assert not vm.vm.running

    asyncio.run(main())
