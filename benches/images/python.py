"""Fills this process with the kind of data a Python service holds, says so, and waits for its input to end.

Arguments: how many bytes of memory to grow to, a seed.
"""

import itertools
import os
import random
import sys

size, seed = int(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
first = ["".join(rng.choices("bcdfghklmnprstv", k=1) + rng.choices("aeiou", k=1) + rng.choices("lnrstm", k=1)) for _ in range(300)]
words = ["".join(rng.choices(first, k=rng.randint(1, 3))) for _ in range(5000)]
# As in any language, the second word is half as common as the first, the third a third.
common = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))


def pick(count):
    return rng.choices(words, cum_weights=common, k=count)


class Order:
    """Attributes in a dict, as most objects have them."""

    def __init__(self, number):
        self.number = number
        self.customer = " ".join(w.capitalize() for w in pick(2))
        self.email = ".".join(pick(2)) + "@example.org"
        self.lines = [
            {"sku": f"{pick(1)[0]}-{rng.randrange(10**5):05}", "count": rng.randint(1, 9), "price": round(rng.random() * 100, 2)}
            for _ in range(rng.randint(1, 5))
        ]
        self.tags = set(pick(rng.randint(0, 4)))
        self.note = " ".join(pick(rng.randint(0, 25)))


class Point:
    """Attributes in slots."""

    __slots__ = ("lat", "lon", "name")

    def __init__(self):
        self.lat, self.lon = round(rng.uniform(-90, 90), 5), round(rng.uniform(-180, 180), 5)
        self.name = pick(1)[0]


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


orders, index, points, blobs = {}, {}, [], []
number = 0
while resident() < size:
    for _ in range(200):
        number += 1
        order = Order(number)
        orders[number] = order
        for tag in order.tags:
            index.setdefault(tag, []).append(number)
        points.extend(Point() for _ in range(3))
        if number % 100 == 0:
            blobs.append(rng.randbytes(rng.randint(100, 4000)))
    # As time goes by, some goes and leaves holes.
    for gone in rng.sample(sorted(orders.keys()) if number < 2000 else range(1, number), 20):
        orders.pop(gone, None)

print("ready", os.getpid(), flush=True)
sys.stdin.read()
