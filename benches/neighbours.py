#!/usr/bin/env python3
"""What a program is left with beside one that touches everything all the time, by weight.

    benches/neighbours.py --userswap target/release/userswap [--mib 96] [--seconds 20] [--rounds 3]

Two programs of the same size under one daemon with a limit of as much as one of them has, and `limit.fair`: equal weights. The first goes round the hot half of its memory in
no order, as fast as it can, and is measured; the second writes to all of its own, over and over. Beside it, in turn in the same run: the first alone under a limit of half as much. What is
printed is how often it went round beside the other, by how often alone, each by the second of CPU time that it had too, for two programs share the CPUs.
"""

import argparse
import os
import subprocess
import tempfile
import time

from common import Control, end, python, until

PROGRAM = """
import mmap, random, sys, time
kind, mib = sys.argv[1], int(sys.argv[2])
memory = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
chance = random.Random(1)
words = [chance.randbytes(24) + bytes(40) for _ in range(4096)]
for page in range(len(memory) // 4096):
    memory[page * 4096 : (page + 1) * 4096] = b"".join(chance.choices(words, k=64))
print("ready", flush=True)
pages = len(memory) // 4096
state = 1
while True:
    rounds, until, cpu = 0, time.monotonic() + 1, time.thread_time()
    while time.monotonic() < until:
        if kind == "greedy":
            for page in range(pages):
                memory[page * 4096] = (memory[page * 4096] + 1) & 255
        else:
            # Seven in eight touches in a quarter of it, the others anywhere.
            for _ in range(500):
                state = (state * 1103515245 + 12345) & 0x7FFFFFFF
                page = state % (pages // 4 if state >> 28 else pages)
                memory[page * 4096] = (memory[page * 4096] + 1) & 255
        rounds += 1
    print(rounds, time.thread_time() - cpu, flush=True)
"""


class Program:
    def __init__(self, args, place, kind):
        script = os.path.join(place, "program.py")
        with open(script, "w") as file:
            file.write(PROGRAM)
        words = [args.userswap, "run", "-q", "--daemon", f"{place}/s", "--", python(), script, kind, str(args.mib)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def measured(self, seconds):
        lines = [self.process.stdout.readline().split() for _ in range(seconds)]
        return sum(int(line[0]) for line in lines), sum(float(line[1]) for line in lines)

    def end(self):
        end(self.process)


def once(args, together):
    with tempfile.TemporaryDirectory(prefix="neighbours-") as place:
        limit = args.mib << 20 if together else args.mib << 19
        with open(f"{place}/policy.toml", "w") as file:
            file.write('preset = "limit"\n\n[limit]\nfair = true\n')
        words = [args.userswap, "daemon", "--listen", f"{place}/s", "--control", f"{place}/c", "--limit", str(limit), "--policy", f"{place}/policy.toml"]
        daemon = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        try:
            until("the daemon listens", lambda: os.path.exists(f"{place}/s"))
            programs = [Program(args, place, "measured")] + ([Program(args, place, "greedy")] if together else [])
            # Settled: both have been held to the limit for a while. Nobody reads what the other says.
            programs[0].measured(args.settle)
            rounds, cpu = programs[0].measured(args.seconds)
            clients = Control(args.userswap, f"{place}/c").ask("clients")
            resident = [client["resident_bytes"] >> 20 for client in clients]
            for program in programs:
                program.end()
        finally:
            end(daemon)
        return rounds / args.seconds, rounds / cpu, resident


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--userswap", default="target/release/userswap")
    parser.add_argument("--mib", type=int, default=96)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--settle", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ratios = []
    for number in range(args.rounds):
        order = [False, True] if number % 2 == 0 else [True, False]
        done = {together: once(args, together) for together in order}
        (alone, alone_cpu, had), (beside, beside_cpu, have) = done[False], done[True]
        ratios.append((beside / alone, beside_cpu / alone_cpu))
        print(f"alone {alone:.1f} rounds/s with {had} MiB, beside {beside:.1f} with {have} MiB: {beside / alone:.2f}; by CPU time {beside_cpu / alone_cpu:.2f}", flush=True)
    for what, values in zip(("rounds a second", "rounds a second of its CPU time"), zip(*ratios)):
        print(f"{what}, beside by alone with half: {sorted(values)[len(values) // 2]:.2f} ({min(values):.2f}-{max(values):.2f})")


main()
