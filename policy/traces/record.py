#!/usr/bin/env python3
"""Records the traces of this directory anew: record.py USERSWAP DIRECTORY [NAME ...]

Each is a real program, small enough that its trace is. What isn't installed is left out and said so. Traces of two runs differ, since the
windows fall differently; what they say of a policy hardly does."""

import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time

USERSWAP, TO = sys.argv[1], pathlib.Path(sys.argv[2])
ONLY = sys.argv[3:]

# A dictionary of objects, read at random with a few favourites, then in order, then at random again.
PYTHON = """
import random
rng = random.Random(7)
table = {f"key-{n:08d}": [rng.random(), str(rng.getrandbits(64)) * 3, {"n": n}] for n in range(40_000)}
keys = list(table)
def some(count):
    for _ in range(count):
        entry = table[keys[min(int(rng.paretovariate(0.6)), len(keys)) - 1 if rng.random() < 0.7 else rng.randrange(len(keys))]]
        entry[2]["n"] += 1
for _ in range(2):
    some(40_000)
    sum(entry[2]["n"] for entry in table.values())
    some(40_000)
"""

NODE = """
const table = new Map();
let state = 1;
const random = below => (state = (state * 48271) % 2147483647) % below;
for (let n = 0; n < 120000; n++) table.set('key' + n, { n, text: 'x'.repeat(n % 40), list: [n, n + 1] });
let sum = 0;
for (let round = 0; round < 60; round++) {
  for (let n = 0; n < 60000; n++) {
    const key = 'key' + (random(10) < 8 ? random(12000) : random(120000));
    const entry = table.get(key);
    entry.n++; sum += entry.list[1];
    if (n % 20 == 0) table.set(key, { n: entry.n, text: 'y'.repeat(random(40)), list: [n] });
  }
}
console.log(sum);
"""

SQL = """
PRAGMA cache_size = 100000;
CREATE TABLE item (id INTEGER PRIMARY KEY, owner INTEGER, name TEXT, price REAL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120000)
  INSERT INTO item SELECT i, i * 7919 % 3000, hex(i * 2654435761 % 4294967296) || hex(i), i % 1000 FROM n;
CREATE INDEX by_owner ON item (owner);
"""

SQL_ROUND = """
WITH RECURSIVE n(i) AS (SELECT {seed} UNION ALL SELECT i * 48271 % 2147483647 FROM n LIMIT 12000)
  SELECT sum(price) FROM n JOIN item ON item.id = 1 + (n.i % 100) * (n.i % 100) * (n.i / 100 % 12);
WITH RECURSIVE n(i) AS (SELECT {seed} UNION ALL SELECT i * 48271 % 2147483647 FROM n LIMIT 300)
  SELECT count(*) FROM n JOIN item ON item.owner = n.i % 3000;
UPDATE item SET price = price + 1 WHERE id % 97 = {seed} % 97;
SELECT sum(length(name)) FROM item WHERE id BETWEEN {seed} * 1000 AND {seed} * 1000 + 20000;
"""

JAVA = """
import java.util.*;
public class Heap {
    public static void main(String[] words) {
        Random random = new Random(7);
        Map<Integer, long[]> table = new HashMap<>();
        for (int n = 0; n < 120000; n++) table.put(n, new long[8]);
        long sum = 0;
        for (int round = 0; round < 1200000; round++) {
            int key = (int) Math.min(119999, Math.abs(random.nextGaussian()) * 20000);
            sum += table.get(key)[round % 8]++;
            if (round % 50 == 0) table.put(random.nextInt(120000), new long[8]);
        }
        System.out.println(sum);
    }
}
"""


def record(name, words, during=None, **options):
    """Records what `words` does, while `during` is done."""
    window = options.pop("window", 50)
    command = [USERSWAP, "record", "-o", str(TO / f"{name}.trace"), "--window", str(window), "--", *words]
    print(name, flush=True)
    if during is None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)
        return
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, **options)
    try:
        during()
    finally:
        child.wait(120)


class Redis:
    """A server and a connection to it."""

    def __init__(self, place):
        self.path = f"{place}/redis"
        self.words = ["redis-server", "--port", "0", "--unixsocket", self.path, "--save", "", "--appendonly", "no", "--daemonize", "no"]

    def connect(self):
        for _ in range(600):
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                return self.socket.connect(self.path)
            except OSError:
                time.sleep(0.05)
        raise SystemExit("redis-server does not listen")

    def ask(self, commands):
        """Asks in one go; answers are read to the last."""
        out = b"".join(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words) for words in commands)
        self.socket.sendall(out + b"*2\r\n$4\r\nECHO\r\n$8\r\nthat-all\r\n")
        seen = b""
        while not seen.endswith(b"$8\r\nthat-all\r\n"):
            seen = seen[-64:] + self.socket.recv(1 << 16)

    def fill(self, keys, size):
        self.keys = [b"key:%08d" % n for n in range(keys)]
        for at in range(0, keys, 100):
            self.ask([(b"SET", key, b"%d" % at * (size // 6)) for key in self.keys[at : at + 100]])

    def end(self):
        self.socket.sendall(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")
        self.socket.close()


def zipf(rng, count, times, skew=0.99):
    weights = [1 / (n + 1) ** skew for n in range(count)]
    order = list(range(count))
    rng.shuffle(order)
    return rng.choices(order, weights, k=times)


def redis_zipf(place):
    redis, rng = Redis(place), random.Random(7)

    def during():
        redis.connect()
        redis.fill(30_000, 400)
        wanted = zipf(rng, 30_000, 200_000)
        for at in range(0, len(wanted), 50):
            redis.ask([(b"GET", redis.keys[n]) if rng.random() < 0.9 else (b"SET", redis.keys[n], b"v" * 400) for n in wanted[at : at + 50]])
        redis.end()

    record("redis-zipf", redis.words, during)


def redis_scan(place):
    redis, rng = Redis(place), random.Random(8)

    def during():
        redis.connect()
        redis.fill(25_000, 400)
        for _ in range(8):
            wanted = zipf(rng, 25_000, 10_000)
            for at in range(0, len(wanted), 50):
                redis.ask([(b"GET", redis.keys[n]) for n in wanted[at : at + 50]])
            for at in range(0, 25_000, 50):
                redis.ask([(b"GET", key) for key in redis.keys[at : at + 50]])
        redis.end()

    record("redis-scan", redis.words, during)


def python(place):
    record("python", [sys.executable, "-c", PYTHON])


def node(place):
    script = pathlib.Path(place, "heap.js")
    script.write_text(NODE)
    record("node", ["node", "--max-old-space-size=128", str(script)])


def java(place):
    source = pathlib.Path(place, "Heap.java")
    source.write_text(JAVA)
    subprocess.run(["javac", str(source)], check=True)
    record("java", ["java", "-Xmx64m", "-Xms64m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-cp", place, "Heap"])


def sqlite(place):
    sql = pathlib.Path(place, "all.sql")
    sql.write_text(SQL + "".join(SQL_ROUND.format(seed=7 + 13 * n) for n in range(60)))
    with open(sql) as orders:
        record("sqlite", ["sqlite3", ":memory:"], stdin=orders)


def compiler(place):
    source = pathlib.Path(place, "big.c")
    functions = []
    for n in range(350):
        body = "".join(f"  if (a > {n * k % 97}) b += a * {k} ^ t{n}[b & 15]; else a -= b >> {k % 7};\n" for k in range(1, 14))
        functions.append(f"static int t{n}[16]; struct s{n} {{ int x, y; char z[{n % 50 + 1}]; }};\nint f{n}(int a, int b) {{\n{body}  return a + b;\n}}\n")
    source.write_text("".join(functions))
    record("compiler", ["gcc", "-O2", "-c", "-o", f"{place}/big.o", str(source)])


# Words by what they are like: counted, sorted, looked up again, in a language whose every value is an object of its own.
PERL = """
my ($state, %count, %like) = (1);
sub below { $state = ($state * 48271) % 2147483647; $state % $_[0] }
my @words = map { join "", map { chr(97 + below(26)) } 1 .. 4 + below(8) } 1 .. 30000;
for my $round (1 .. 18) {
    for (1 .. 60000) { my $word = $words[below(10) < 8 ? below(3000) : below(30000)]; $count{$word}++; }
    for my $word (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count) { push @{$like{substr($word, 0, 2)}}, $word if $round % 9 == 1 }
    my $found = 0;
    for (1 .. 3000) { my $list = $like{chr(97 + below(26)) . chr(97 + below(26))} or next; $found += grep { $count{$_} > $round } @$list }
}
"""


def perl(place):
    script = pathlib.Path(place, "words.pl")
    script.write_text(PERL)
    record("perl", ["perl", str(script)])


ALL = {
    "python": (python, []),
    "redis-zipf": (redis_zipf, ["redis-server"]),
    "redis-scan": (redis_scan, ["redis-server"]),
    "sqlite": (sqlite, ["sqlite3"]),
    "compiler": (compiler, ["gcc"]),
    "node": (node, ["node"]),
    "perl": (perl, ["perl"]),
    "java": (java, ["java", "javac"]),
}

for name, (make, needed) in ALL.items():
    missing = [program for program in needed if shutil.which(program) is None]
    if ONLY and name not in ONLY:
        continue
    if missing:
        print(f"{name}: left out, there is no {missing[0]}")
        continue
    with tempfile.TemporaryDirectory() as place:
        make(place)
