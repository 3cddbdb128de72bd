"""Builds so many thousand entries, about a megabyte each thousand, from a seed, and walks them so often: in order, from the end, and a part of
them at random, changing some. Prints what it has seen."""

import gc
import hashlib
import random
import sys

thousands, walks = int(sys.argv[1]), int(sys.argv[2])
rng = random.Random(7)
table = {}
for n in range(thousands * 1000):
    table[f"key-{n:08d}"] = [rng.random(), rng.getrandbits(90), str(rng.getrandbits(64)) * 3, {"n": n, "s": [j ^ n for j in range(8)]}]


def digest(order):
    seen = hashlib.sha256()
    for key in order:
        seen.update(key.encode())
        seen.update(repr(table[key]).encode())
    return seen.hexdigest()


print(digest(table), flush=True)
for walk in range(walks):
    total = 0
    for key in rng.sample(list(table), thousands * 30):
        entry = table[key]
        total ^= entry[1] ^ entry[3]["n"] ^ sum(entry[3]["s"])
        entry[3]["n"] += 1
        entry[2] = str(rng.getrandbits(64)) * rng.randrange(1, 5)
    gc.collect()
    print(walk, total, digest(table), digest(reversed(table)), flush=True)
