#!/usr/bin/env python3
"""What a program is left with beside one that touches everything all the time, by weight.

    benches/neighbours.py --userswap target/release/userswap [--mib 96] [--seconds 20] [--rounds 3]

Two programs of the same size under one daemon with a limit of as much as one of them has, and `limit.fair`: equal weights. The first touches pages, seven in eight of them in a quarter of its
memory, and is measured; the second writes to all of its own, over and over. Beside that, in turn in the same run: the first under a limit of half as much without the other; and the same with the other
beside it that nobody serves, so that it takes its part of the CPUs and nothing else. Prints how often the first went round together by how often it did in either.
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
    def __init__(self, args, place, kind, served):
        script = os.path.join(place, "program.py")
        with open(script, "w") as file:
            file.write(PROGRAM)
        words = [args.userswap, "run", "-q", "--daemon", f"{place}/s", "--"] if served else []
        words += [python(), script, kind, str(args.mib)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def measured(self, seconds):
        lines = [self.process.stdout.readline().split() for _ in range(seconds)]
        return sum(int(line[0]) for line in lines), sum(float(line[1]) for line in lines)

    def end(self):
        end(self.process)


def once(args, how):
    with tempfile.TemporaryDirectory(prefix="neighbours-") as place:
        limit = args.mib << 20 if how == "together" else args.mib << 19
        with open(f"{place}/policy.toml", "w") as file:
            file.write('preset = "limit"\n\n[limit]\nfair = true\n')
        words = [args.userswap, "daemon", "--listen", f"{place}/s", "--control", f"{place}/c", "--limit", str(limit), "--policy", f"{place}/policy.toml"]
        daemon = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        try:
            until("the daemon listens", lambda: os.path.exists(f"{place}/s"))
            programs = [Program(args, place, "measured", True)]
            if how != "alone":
                programs.append(Program(args, place, "greedy", how == "together"))
            # Both have been held to the limit for a while then. Nobody reads what the other says: a few hundred lines have room in a pipe.
            programs[0].measured(args.settle)
            rounds, _ = programs[0].measured(args.seconds)
            clients = Control(args.userswap, f"{place}/c").ask("clients")
            resident = [client["resident_bytes"] >> 20 for client in clients]
            for program in programs:
                program.end()
        finally:
            end(daemon)
        return rounds / args.seconds, resident


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--userswap", default="target/release/userswap")
    parser.add_argument("--mib", type=int, default=96)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--settle", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ratios = []
    ways = ["alone", "together", "beside one unserved"]
    for number in range(args.rounds):
        at = number % len(ways)
        done = {how: once(args, how) for how in ways[at:] + ways[:at]}
        together = done["together"][0]
        ratios.append((together / done["alone"][0], together / done["beside one unserved"][0]))
        said = [f"{how} {done[how][0]:.1f} a second with {done[how][1]} MiB" for how in ways]
        print("; ".join(said) + f": {ratios[-1][0]:.2f} and {ratios[-1][1]:.2f}", flush=True)
    for what, values in zip(("alone", "beside one unserved"), zip(*ratios)):
        print(f"together by {what}: {sorted(values)[len(values) // 2]:.2f} ({min(values):.2f}-{max(values):.2f})")


main()
