#!/usr/bin/env python3
"""What a policy saves of a program that idles, and what that costs it when it is busy.

    benches/idle_busy.py --userswap target/release/userswap [--policy proactive] [--mib 256] [--idle 120] [--busy 160]

The program has so many MiB, three eighths of their bytes random. It idles (touches 300 pages over and over, a few times a second), is busy with half of
its memory (touches bytes all over it as fast as it can, and counts), idles again. While it is busy the policy is switched between `off` and the one that is
measured, every ten seconds, in pairs whose order alternates: what is compared is a second of one and a second of the other in the same run, also by the CPU
time that the program had: beside others it has less than a second. The first
ten seconds after idling are told apart: all that is touched comes back then.

Prints seconds, memory, what was out, and the share of the second before that its threads waited for what was out (of the one that waited longest) to
standard output as CSV, and a summary to standard error. `userswap-bench plot FILE.csv -o FILE.html` draws it.
"""

import argparse
import json
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time

from common import Control

PAGE = 4096


def work(mib, idle, busy):
    """The program. A line a second: the phase, how often it went round, and the CPU time it had for that."""
    memory = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    chance = random.Random(1)
    words = [chance.randbytes(24) + bytes(40) for _ in range(4096)]
    for page in range(len(memory) // PAGE):
        content = b"".join(chance.choices(words, k=PAGE // 64))
        memory[page * PAGE : (page + 1) * PAGE] = content
    print("ready", flush=True)
    state = 1
    for phase, seconds in (("idle", idle), ("busy", busy), ("idle", idle)):
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            rounds, until, cpu = 0, time.monotonic() + 1, time.thread_time()
            while time.monotonic() < until:
                if phase == "idle":
                    for page in range(300):
                        memory[page * PAGE] = 1
                    time.sleep(0.2)
                else:
                    half = len(memory) // 2
                    for _ in range(2000):
                        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
                        at = state % half
                        memory[at] = (memory[at] + 1) & 255
                rounds += 1
            print(phase, rounds, time.thread_time() - cpu, flush=True)


def measure(args):
    place = tempfile.mkdtemp(prefix="idle-busy-")
    socket = os.path.join(place, "ctl")
    report = os.path.join(place, "report.json")
    command = [args.userswap, "run", "-q", "--policy", args.policy, "--control", socket, "--report", report, "--"]
    command += [sys.executable, __file__, "--work", "--mib", str(args.mib)]
    command += ["--idle", str(args.idle), "--busy", str(args.busy)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    control = Control(args.userswap, socket)
    assert program.stdout.readline() == "ready\n"
    start, rows, in_force, busy_for = time.monotonic(), [], args.policy, 0
    print("second,phase,policy,rounds,cpu_s,resident_mib,out_mib,stall_percent,target_percent")
    waited_before, looked_before = 0, start
    for line in program.stdout:
        phase, rounds, cpu = line.split()
        clients = control.ask("clients") or [{"resident_bytes": 0, "moved_out_bytes": 0, "stalled_us": waited_before}]
        resident = clients[0]["resident_bytes"] / (1 << 20)
        out = clients[0]["moved_out_bytes"] / (1 << 20)
        looked, waited = time.monotonic(), clients[0]["stalled_us"]
        stall = (waited - waited_before) / (looked - looked_before) / 1e6 * 100
        waited_before, looked_before = waited, looked
        second = round(looked - start)
        rows.append((second, phase, in_force, int(rounds), resident, out, busy_for, float(cpu), stall))
        print(f"{second},{phase},{in_force},{rounds},{float(cpu):.3f},{resident:.1f},{out:.1f},{stall:.4f},0.1", flush=True)
        busy_for = busy_for + 1 if phase == "busy" else 0
        # Ten seconds of waking, then pairs of tens: ABBA.
        wanted = args.policy
        if phase == "busy" and busy_for >= 10:
            wanted = [args.policy, "off", "off", args.policy][(busy_for - 10) // 10 % 4]
        if wanted != in_force:
            control.ask("policy", wanted)
            in_force = wanted
    program.wait()
    summary(args, rows, json.load(open(report)))


def summary(args, rows, report):
    def mean(values):
        return sum(values) / max(len(values), 1)

    def say(*words):
        print(*words, file=sys.stderr)

    first = next(at for at, row in enumerate(rows) if row[1] == "busy")
    last = len(rows) - next(at for at, row in enumerate(reversed(rows)) if row[1] == "busy")
    for name, phase in (("first idle phase", rows[:first]), ("last idle phase", rows[last:])):
        saved = [row[5] / args.mib for row in phase]
        half = next((at for at, share in enumerate(saved) if share >= 0.6), None)
        say(f"{name}: {saved[-1]:.0%} out at its end, {mean(saved):.0%} in the mean, 60% after {half} s")
    busy = [row for row in rows if row[1] == "busy"]
    say(f"waking: {busy[0][3]} rounds in the first second, {busy[1][3]} in the next")
    # The second in which it is switched belongs to nobody.
    steady = [row for row in busy if row[6] >= 10 and (row[6] - 10) % 10 != 0]
    with_it = [row for row in steady if row[2] != "off"]
    without = [row for row in steady if row[2] == "off"]
    for what, of in (("second", lambda row: row[3]), ("second of its own CPU time", lambda row: row[3] / row[7])):
        one, other = mean([of(row) for row in with_it]), mean([of(row) for row in without])
        say(f"busy: {one:.1f} rounds a {what}, {other:.1f} with it off: {1 - one / other:+.2%} lost")
    with_stall = [row[8] for row in rows if row[2] != "off" and (row[1] == "idle" or row[6] >= 10)]
    say(f"stalled, waking aside: {mean(with_stall):.3f}% in the mean, {sum(stall <= 0.1 for stall in with_stall) / max(len(with_stall), 1):.0%} of seconds at most 0.1%")
    say(f"busy: {mean([row[5] for row in steady]) / args.mib:.0%} out in the mean")
    keys = ("pages_out", "pages_in", "faults", "fault_ns")
    say(json.dumps({key: report[key] for key in keys}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--userswap", default="target/release/userswap")
    parser.add_argument("--policy", default="proactive")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--idle", type=int, default=120)
    parser.add_argument("--busy", type=int, default=170)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.mib, args.idle, args.busy)
    else:
        measure(args)


main()
