"""Fills a redis server with JSON documents, hashes and sorted sets, says so, and waits for its input to end.

Arguments: how many bytes of memory the server is to grow to, a seed. The server is this script's own, listens on a socket in
a temporary directory and writes nothing to disk.
"""

import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time

size, seed = int(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
words = ["".join(rng.choices("abcdefghiklmnoprstuvw", k=rng.randint(3, 10))) for _ in range(5000)]
# As in any language, the second word is half as common as the first, the third a third.
common = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))


def pick(count):
    return " ".join(rng.choices(words, cum_weights=common, k=count))


def resident(pid):
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def command(*parts):
    """One command in the server's protocol."""
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        part = part if isinstance(part, bytes) else str(part).encode()
        out.append(b"$%d\r\n%s\r\n" % (len(part), part))
    return b"".join(out)


def document(number):
    return json.dumps(
        {
            "id": number,
            "name": pick(2),
            "email": f"{pick(1)}@{pick(1)}.example",
            "created": 1_600_000_000 + rng.randrange(10**8),
            "active": rng.random() < 0.7,
            "roles": rng.sample(["reader", "writer", "admin", "owner", "guest"], rng.randint(1, 3)),
            "address": {"street": pick(1), "no": rng.randint(1, 200), "zip": f"{rng.randrange(10**5):05}"},
            "history": [{"t": rng.randrange(10**9), "what": pick(1)} for _ in range(rng.randint(0, 8))],
        }
    )


with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "redis.sock")
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", folder],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        client = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 10
        while True:
            try:
                client.connect(path)
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    sys.exit("redis-server doesn't answer")
                time.sleep(0.02)
        replies, number = client.makefile("rb"), 0
        while resident(server.pid) < size:
            batch = []
            for _ in range(200):
                number += 1
                batch.append(command("SET", f"user:{number}", document(number)))
                batch.append(command("HSET", f"session:{rng.getrandbits(64):016x}", "user", number, "seen", rng.randrange(10**9)))
                batch.append(command("ZADD", f"board:{number % 50}", rng.random(), f"user:{number}"))
                batch.append(command("DEL", f"user:{rng.randint(1, number * 5)}"))
            client.sendall(b"".join(batch))
            for _ in batch:
                reply = replies.readline()
                if reply[:1] not in (b"+", b":"):
                    sys.exit(f"redis-server answered {reply!r}")
        print("ready", server.pid, flush=True)
        sys.stdin.read()
    finally:
        server.kill()
        server.wait()
