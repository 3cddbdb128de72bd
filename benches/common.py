"""What the scripts beside this have in common: a daemon's answers, what processes have in memory, and a redis to ask."""

import json
import os
import random
import socket
import subprocess
import time


class Control:
    """A daemon's control socket."""

    def __init__(self, userswap, path):
        self.base = [userswap, "ctl", "--json", "--control", path]

    def ask(self, *words):
        answer = subprocess.run(self.base + list(words), capture_output=True, text=True)
        return json.loads(answer.stdout) if answer.returncode == 0 else None


def until(what, found, seconds=60):
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        if answer := found():
            return answer
        time.sleep(0.05)
    raise SystemExit(f"waited too long until {what}")


def anonymous(pid):
    """Bytes of its share of anonymous memory (Pss_Anon); 0 for one that is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as lines:
            return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss_Anon:")), 0)
    except (OSError, ProcessLookupError):
        return 0


class Redis:
    """A connection to a redis server at a Unix socket."""

    def __init__(self, path):
        def connected():
            try:
                self.socket = socket.socket(socket.AF_UNIX)
                self.socket.connect(path)
                return True
            except OSError:
                return False

        until("redis listens", connected)
        self.answers = self.socket.makefile("rb")

    @staticmethod
    def said(words):
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)

    def ask(self, *requests):
        self.socket.sendall(b"".join(self.said(request) for request in requests))
        return [self.answer() for _ in requests]

    def answer(self):
        line = self.answers.readline()
        if not line or line.startswith(b"-"):
            raise SystemExit(f"redis: {line!r}")
        if line.startswith(b"$") and int(line[1:]) >= 0:
            return self.answers.read(int(line[1:]) + 2)[:-2]
        return line


class Documents:
    """Keys of a redis and what stands under them, asked for by Zipf's law; everything comes from a seed."""

    def __init__(self, count, seed=7):
        self.chance = random.Random(seed)
        self.count = count
        self.words = [self.chance.randbytes(9).hex().encode() for _ in range(2000)]
        self.places = list(range(count))
        self.chance.shuffle(self.places)

    def value(self):
        return b" ".join(self.chance.choices(self.words, k=40))

    def fill(self, redis):
        for at in range(0, self.count, 500):
            redis.ask(*[(b"SET", b"doc:%d" % n, self.value()) for n in range(at, min(at + 500, self.count))])

    def request(self):
        # Zipf with exponent 1, by the inverse of its integral.
        rank = min(int(self.count ** self.chance.random()), self.count - 1)
        key = b"doc:%d" % self.places[rank]
        return (b"GET", key) if self.chance.random() < 0.9 else (b"SET", key, self.value())


def redis_words(path):
    return ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--activedefrag", "no"]


def quantile(values, share):
    values = sorted(values)
    return values[min(int(len(values) * share), len(values) - 1)] if values else float("nan")


def end(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def python():
    """The interpreter itself: a script that looks for it would be measured, too."""
    return os.path.realpath(os.sys.executable)
