// Keeps so many thousand records, replaces a part of them again and again, collects, and checks every one.
'use strict';
const thousands = Number(process.argv[2]);

let seed = 1;
const next = () => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0);
const text = (n) => `${n}-`.repeat(4 + (n % 29));
const record = (n) => ({ n, text: text(n), list: Array.from({ length: 8 }, (_, j) => (n + j) % 1000003), bytes: Buffer.alloc(32, n & 255) });
const wrong = ({ n, text: t, list, bytes }) =>
  t !== text(n) || list.some((value, j) => value !== (n + j) % 1000003) || bytes.some((byte) => byte !== (n & 255));

const records = new Map();
for (let n = 0; n < thousands * 1000; n++) records.set(n, record(next()));
for (let round = 0; round < 4; round++) {
  for (let n = 0; n < thousands * 200; n++) records.set(next() % (thousands * 1000), record(next()));
  global.gc();
  let sum = 0;
  for (const [at, value] of records) {
    if (wrong(value)) throw new Error(`record ${at} is ${JSON.stringify(value)}`);
    sum = (Math.imul(sum, 31) + value.n) >>> 0;
  }
  console.log(round, records.size, sum);
}
