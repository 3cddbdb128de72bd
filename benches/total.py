#!/usr/bin/env python3
"""Whole programs with the same memory in all, what they have and where the rest is kept: `userswap run --total`, and a memory cgroup that swaps to zram (lz4), in turn.

    sudo benches/total.py --userswap target/release/userswap [--shares 70,50] [--rounds 3] [--only redis|python]

redis: documents asked for by Zipf's law, nine in ten requests GET, the others SET, one at a time; requests a second and their p99. python: the heap of `userswap-bench limit`,
made and walked; its time. How large the data is is found first, without any limit; the shares are of that.

The kernel knows no limit for both together: what the cgroup may have is set anew 20 times a second to what is left beside zram's memory. Files that it has in the page cache aren't counted,
on neither side. Needs root, a memory cgroup (version 1), zram, redis-server. Takes the lock that `userswap-bench` takes for zram.
"""

import argparse
import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import time

from common import Documents, Redis, anonymous, end, python, quantile, redis_words

HERE = os.path.dirname(os.path.abspath(__file__))
GROUPS = "/sys/fs/cgroup/memory"


def read(path):
    with open(path) as file:
        return file.read()


def write(path, what):
    with open(path, "w") as file:
        file.write(str(what))


class Zram:
    """A swap device of its own, taken away at the end."""

    def __init__(self, size):
        self.lock = open("/run/lock/userswap-zram.lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.number = int(read("/sys/class/zram-control/hot_add"))
        self.sys = f"/sys/block/zram{self.number}"
        write(f"{self.sys}/comp_algorithm", "lz4")
        write(f"{self.sys}/disksize", size)
        self.device = f"/dev/zram{self.number}"
        subprocess.run(["mkswap", self.device], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.run(["swapon", "-p", "32767", self.device], check=True)

    def used(self):
        return int(read(f"{self.sys}/mm_stat").split()[2])

    def end(self):
        subprocess.run(["swapoff", self.device], check=False)
        write(f"{self.sys}/reset", 1)
        write("/sys/class/zram-control/hot_remove", self.number)
        self.lock.close()


class Group:
    """A memory cgroup that is left what zram leaves of a total."""

    def __init__(self, zram, total):
        self.path = f"{GROUPS}/userswap-total-{os.getpid()}"
        os.mkdir(self.path)
        self.zram, self.total, self.over = zram, total, False
        self.hold()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def hold(self):
        cache = next(int(line.split()[1]) for line in read(f"{self.path}/memory.stat").splitlines() if line.startswith("cache "))
        try:
            write(f"{self.path}/memory.limit_in_bytes", max(self.total - self.zram.used() + cache, 4 << 20))
        except OSError:
            # More is in memory than the kernel can take out just now: the next time.
            pass

    def run(self):
        while not self.over:
            self.hold()
            time.sleep(0.05)

    def words(self):
        return ["/bin/sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh"]

    def end(self):
        self.over = True
        self.thread.join()
        write(f"{self.path}/memory.force_empty", 0)
        for _ in range(100):
            try:
                return os.rmdir(self.path)
            except OSError:
                time.sleep(0.05)


def redis(words, args):
    """Requests a second, their p99 in µs, and what redis had before they began."""
    with tempfile.TemporaryDirectory(prefix="total-") as place:
        server = subprocess.Popen(words + redis_words(f"{place}/redis"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            client = Redis(f"{place}/redis")
            documents = Documents(args.documents)
            documents.fill(client)
            for _ in range(args.documents // 4):
                client.ask(documents.request())
            pid = next(int(line.split(b":")[1]) for line in client.ask((b"INFO", b"server"))[0].split(b"\r\n") if line.startswith(b"process_id:"))
            size = anonymous(pid)
            requests = [documents.request() for _ in range(args.requests)]
            took, start = [], time.monotonic()
            for request in requests:
                before = time.monotonic()
                client.ask(request)
                took.append(time.monotonic() - before)
            return len(took) / (time.monotonic() - start), quantile(took, 0.99) * 1e6, size
        finally:
            end(server)


def heap(words, args):
    """Runs a second, none, and the most it had."""
    start, most = time.monotonic(), 0
    program = subprocess.Popen(words + [python(), f"{HERE}/programs/heap.py", str(args.heap), "walk", "5"], stdout=subprocess.DEVNULL)
    while program.poll() is None:
        most = max(most, anonymous(program.pid)) if not words else 0
        time.sleep(0.02)
    if program.returncode != 0:
        return None
    return 1 / (time.monotonic() - start), float("nan"), most


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--userswap", default="target/release/userswap")
    parser.add_argument("--store", default="ram:lz4")
    parser.add_argument("--shares", default="70,50")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--heap", type=int, default=100, help="MiB of objects")
    parser.add_argument("--only", choices=["redis", "python"])
    args = parser.parse_args()
    programs = {"redis": redis, "python": heap}
    zram = Zram(2 << 30)
    print("program,share_percent,round,userswap_per_s,cgroup_per_s,throughput_ratio,userswap_p99_us,cgroup_p99_us,p99_ratio", flush=True)
    try:
        for name, program in programs.items():
            if args.only not in (None, name):
                continue
            size = program([], args)[2]
            print(f"{name}: {size >> 20} MiB by itself", file=sys.stderr)
            for share in map(int, args.shares.split(",")):
                ratios = []
                for number in range(args.rounds):
                    total, got = size * share // 100, {}
                    for who in ["userswap", "cgroup"][:: 1 if number % 2 == 0 else -1]:
                        if who == "userswap":
                            got[who] = program([args.userswap, "run", "-q", "--store", args.store, "--total", str(total), "--"], args)
                        else:
                            group = Group(zram, total)
                            try:
                                got[who] = program(group.words(), args)
                            except (SystemExit, OSError) as error:
                                got[who] = None
                                print(f"{name} at {share}% in the cgroup: {error}", file=sys.stderr)
                            finally:
                                group.end()
                    ours, theirs = got["userswap"], got["cgroup"]
                    if not ours or not theirs:
                        print(f"{name},{share},{number},{ours and ours[0]},killed,,,,", flush=True)
                        continue
                    ratios.append(ours[0] / theirs[0])
                    print(f"{name},{share},{number},{ours[0]:.3f},{theirs[0]:.3f},{ours[0] / theirs[0]:.2f},{ours[1]:.0f},{theirs[1]:.0f},{ours[1] / theirs[1]:.2f}", flush=True)
                if ratios:
                    print(f"{name} at {share}%: {sorted(ratios)[len(ratios) // 2]:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) times the cgroup's throughput", file=sys.stderr)
    finally:
        zram.end()


main()
