"""Builds a heap of small objects of about so many MiB, goes through it again and again, and prints what it saw.

heap.py MIB ORDER WALKS: "walk" goes through all of it in order, "random" through a tenth of it anywhere, "some" mostly through
the same part."""

import random
import sys

mib, order, walks = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
rng = random.Random(7)
rows = []
for n in range(mib * 1250):
    text = str(rng.getrandbits(64)) * 3
    rows.append({"id": n, "name": f"row {n:08d}", "values": [n ^ j for j in range(8)], "text": text})

for walk in range(walks):
    if order == "walk":
        numbers = range(len(rows))
    elif order == "random":
        numbers = [rng.randrange(len(rows)) for _ in range(len(rows) // 10)]
    else:
        numbers = [int(len(rows) * rng.random() ** 4) for _ in range(len(rows) // 2)]
    seen = 0
    for n in numbers:
        row = rows[n]
        seen = seen * 31 + row["id"] + row["values"][n & 7] + len(row["name"]) + ord(row["text"][5])
        seen &= (1 << 60) - 1
        if not n & 15:
            row["values"][3] += 1
    print(walk, seen)
