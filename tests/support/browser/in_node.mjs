// Runs the browser's modules in node. `vectors`: judge the golden vectors. `answers`: read {tallies, notes} as JSON from
// standard input and say what each comes to. `recounts`: the same of {log, now_ms, evidence: [...]}. JSON goes to standard
// output.

import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";

import { counted, judge } from "./vectors.mjs";

const MODULES = new URL("../../../governance/dashboard/static/verify/", import.meta.url);
const VECTORS = new URL("../vectors/", import.meta.url);

async function answers(asked) {
  const names = ["bytes", "notes", "ballots", "opening", "tally"];
  const on = Object.assign({}, ...(await Promise.all(names.map((name) => import(new URL(`${name}.js`, MODULES))))));
  const { tallies, notes } = on.readJson(asked);
  const known = await Promise.all(notes.keys.map((vkey) => on.Verifier.fromVkey(vkey)));
  const opened = [];
  for (const note of notes.all) {
    const found = await on.openNote(Buffer.from(note, "base64"), known).catch((error) => error);
    opened.push(found instanceof on.NoteError ? null : found.text);
  }
  const counts = [];
  for (const vote of tallies) counts.push(await counted(on, vote));
  return { tallies: counts, notes: opened };
}

async function recounts({ log, now_ms, evidence }) {
  const { Verifier } = await import(new URL("notes.js", MODULES));
  const { recount } = await import(new URL("recount.js", MODULES));
  const verifier = await Verifier.fromVkey(log);
  const told = ({ count, outcome, agrees, ballots }) => ({ state: count.state, outcome, agrees, ballots: ballots.length });
  const all = evidence.map((one) => recount(one, verifier, now_ms).then(told, (error) => ({ refused: error.message })));
  return Promise.all(all);
}

const load = (name) => readFile(new URL(`${name}.json`, VECTORS), "utf8");
const TASKS = {
  vectors: () => judge(MODULES, load),
  answers: async () => answers(await text(process.stdin)),
  recounts: async () => recounts(JSON.parse(await text(process.stdin))),
};
const done = await TASKS[process.argv[2]]();
process.stdout.write(JSON.stringify(done, (_, value) => (typeof value === "bigint" ? String(value) : value)));
