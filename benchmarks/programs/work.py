"""What CPython runs in the guest: dictionaries, strings, sorting, objects and long integers, SCALE times."""

import sys
import time


class Account:
    """Something with attributes and a method."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.balance = 0

    def move(self, amount: int) -> int:
        self.balance = (self.balance * 31 + amount) % 1000003
        return self.balance


def words(seed: int) -> list[str]:
    out = []
    for _ in range(800):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        out.append("".join("abcdefgh"[seed >> shift & 7] for shift in (8, 12, 16)))
    return out


def turn(seed: int) -> int:
    text = words(seed)
    counts: dict[str, int] = {}
    for word in text:
        counts[word] = counts.get(word, 0) + 1
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    accounts = {word: Account(word) for word in counts}
    total = 0
    for place, word in enumerate(text):
        total += accounts[word].move(place)
    joined = " ".join(word for word, _ in common).upper().replace("A", "xyz").split("X")
    product = 1
    for factor in range(2, 150):
        product *= factor
    return (total + len(joined) + len(str(product)) + sum(map(len, joined)) + product % 1000003) % (1 << 61)


def main() -> None:
    scale = int(sys.argv[1])
    print("begin", flush=True)
    start = time.monotonic()
    checksum = 1
    for number in range(scale):
        checksum = (checksum * 0x9E3779B97F4A7C15 + turn(number)) & (1 << 64) - 1
    taken = time.monotonic() - start
    print(f"result {checksum:016x}\nseconds {taken:.6f}", flush=True)


main()
