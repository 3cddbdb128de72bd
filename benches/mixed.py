#!/usr/bin/env python3
"""How well a limit is held under mixed load: redis, a Python heap made and walked over and over, and a program that idles and bursts, under one daemon.

    benches/mixed.py --userswap target/release/userswap [--limit 128] [--minutes 10] > mixed.csv
    userswap-bench plot mixed.csv -o mixed.html

Ten times a second, the anonymous memory of all clients together, by their shares (Pss_Anon), to standard output as CSV; a summary to standard error: the share of samples at or under the limit
and a twentieth,
from the first second on; nothing is left out.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time

from common import Control, Documents, Redis, anonymous, end, python, quantile, redis_words, until

HERE = os.path.dirname(os.path.abspath(__file__))

BURSTS = """
import mmap, time
while True:
    memory = mmap.mmap(-1, 48 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(len(memory) // 4096):
        memory[page * 4096 : page * 4096 + 1024] = bytes([page & 255, 7, 1, page >> 8 & 255]) * 256
    for _ in range(3):
        time.sleep(3)
        sum(memory[:: 4096])
    memory.close()
    time.sleep(2)
"""


def ask_redis(path, documents, over):
    client, table = Redis(path), Documents(documents)
    table.fill(client)
    while not over.is_set():
        client.ask(*[table.request() for _ in range(20)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--userswap", default="target/release/userswap")
    parser.add_argument("--limit", type=int, default=128, help="MiB")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--documents", type=int, default=80_000)
    parser.add_argument("--heap", type=int, default=60)
    args = parser.parse_args()
    over = threading.Event()
    with tempfile.TemporaryDirectory(prefix="mixed-") as place:
        words = [args.userswap, "daemon", "--listen", f"{place}/s", "--control", f"{place}/c", "--limit", str(args.limit << 20)]
        daemon = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        until("the daemon listens", lambda: os.path.exists(f"{place}/s"))
        run = [args.userswap, "run", "-q", "--daemon", f"{place}/s", "--"]
        with open(f"{place}/bursts.py", "w") as file:
            file.write(BURSTS)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        redis = subprocess.Popen(run + redis_words(f"{place}/redis"), **quiet)
        bursts = subprocess.Popen(run + [python(), f"{place}/bursts.py"], **quiet)
        heap = None
        asker = threading.Thread(target=ask_redis, args=(f"{place}/redis", args.documents, over))
        asker.start()
        control, pids, looked = Control(args.userswap, f"{place}/c"), [], 0
        samples, waited, start = [], {}, time.monotonic()
        print("second,total_mib,limit_mib,stall_percent", flush=True)
        try:
            while (now := time.monotonic() - start) < args.minutes * 60:
                if heap is None or heap.poll() is not None:
                    heap = subprocess.Popen(run + [python(), f"{HERE}/programs/heap.py", str(args.heap), "some", "20"], **quiet)
                stall = ""
                if now - looked >= 1:
                    clients = control.ask("clients") or []
                    pids = [client["pid"] for client in clients if client["pid"]]
                    since = {client["pid"]: client["stalled_us"] for client in clients}
                    most = max((us - waited.get(pid, us) for pid, us in since.items()), default=0)
                    stall, waited, looked = f"{most / (now - looked) / 1e4:.3f}", since, now
                total = sum(anonymous(pid) for pid in pids) / (1 << 20)
                samples.append(total)
                print(f"{now:.2f},{total:.1f},{args.limit},{stall}", flush=True)
                time.sleep(max(0, 0.1 - (time.monotonic() - start - now)))
        finally:
            over.set()
            asker.join(30)
            for program in [redis, bursts, heap, daemon]:
                if program:
                    end(program)
    within = sum(sample <= args.limit * 1.05 for sample in samples) / len(samples)
    print(f"{len(samples)} samples: {within:.1%} at or under the limit and 5%, {quantile(samples, 0.5):.1f} MiB in the middle, {max(samples):.1f} MiB the most", file=sys.stderr)


main()
