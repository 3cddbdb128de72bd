// Fills this process with the kind of data a Node.js service holds, says so, and waits for its input to end.
// Arguments: how many bytes of memory to grow to, a seed.
"use strict";

const [size, seed] = process.argv.slice(-2).map(Number);

let state = seed >>> 0;
function random() {
  state = (state + 0x6d2b79f5) >>> 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
}
const below = (end) => Math.floor(random() * end);
const letters = "abcdefghiklmnoprstuvw";
const word = () => Array.from({ length: 3 + below(7) }, () => letters[below(letters.length)]).join("");
const words = Array.from({ length: 5000 }, word);
// Common words are far more common than rare ones, as in any language.
const pick = () => words[Math.floor(words.length ** random()) - 1];

function record(id) {
  return {
    id,
    name: `${pick()} ${pick()}`,
    score: random() * 1000,
    active: random() < 0.5,
    tags: Array.from({ length: below(5) }, pick),
    // Through JSON, so that it is a flat string rather than a rope.
    body: JSON.parse(JSON.stringify(Array.from({ length: below(30) }, pick).join(" "))),
    position: { x: below(10000), y: below(10000), when: new Date(1.6e12 + below(1e11)) },
  };
}

const records = new Map();
const byTag = new Map();
let id = 0;
while (process.memoryUsage().rss < size) {
  for (let n = 0; n < 500; n++) {
    const made = record(++id);
    records.set(id, made);
    for (const tag of made.tags) {
      if (!byTag.has(tag)) byTag.set(tag, []);
      byTag.get(tag).push(made);
    }
    if (n % 10 === 0) records.delete(1 + below(id));
  }
}

console.log(`ready ${process.pid}`);
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
