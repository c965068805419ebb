// The golden vectors, judged by the modules that run in the browser; the same file runs in node and in Chromium.

const FILES = [
  "notes", "log", "cosignatures", "ballots", "tally", "c2sp", "merkle-inclusion", "merkle-consistency",
];
// transparency-dev calls a proof from the empty tree meaningless; RFC 6962 and C2SP's witness take the empty proof.
const EMPTY_IS_A_PREFIX = "additional/size1-is-zero-and-size2-is-not-zero";

/** What is wrong, one line each, and how many cases there were by file. `base`: URL of the modules; `load`: name -> text. */
export async function judge(base, load) {
  const names = ["bytes", "notes", "merkle", "log", "cosignature", "ballots", "delegating", "opening", "tally"];
  const found = await Promise.all(names.map((name) => import(new URL(`${name}.js`, base))));
  const on = Object.assign({}, ...found);
  const [wrong, cases] = [[], {}];
  for (const file of FILES) {
    const vectors = (file === "tally" ? on.readJson : JSON.parse)(await load(file));
    cases[file] = 0;
    for await (const [name, fault] of JUDGES[file](on, vectors)) {
      cases[file] += 1;
      if (fault) wrong.push(`${file}: ${name}: ${fault}`);
    }
  }
  return { wrong, cases };
}

/** The value of `attempt`; null when it was refused as a note or proof is. Any other error is a fault of the module. */
async function value(attempt) {
  try {
    return await attempt();
  } catch (error) {
    if (["NoteError", "ProofError"].includes(error.constructor.name)) return { refused: error.message };
    throw error;
  }
}

const refused = (found) => found !== undefined && found !== null && found.refused !== undefined;

const same = (found, expected) => {
  const [a, b] = [JSON.stringify(sorted(found)), JSON.stringify(sorted(expected))];
  return a === b ? "" : `${a} where ${b} is expected`;
};

const sorted = (any) => {
  if (Array.isArray(any)) return any.map(sorted);
  if (any === null || typeof any !== "object") return ["bigint", "number"].includes(typeof any) ? String(any) : any;
  return Object.fromEntries(Object.keys(any).sort().map((key) => [key, sorted(any[key])]));
};

const holds = (found, expected) => {
  if (refused(found) === !expected) return "";
  return expected ? `refused (${found.refused})` : "taken";
};

const bytes = (written) => Uint8Array.from(atob(written), (character) => character.charCodeAt(0));

const JUDGES = {
  async *notes(on, vectors) {
    for (const { name, note, keys, text, why } of vectors.notes) {
      const known = await Promise.all(keys.map((key) => on.Verifier.fromVkey(key)));
      const found = await value(async () => (await on.openNote(bytes(note), known)).text);
      const fits = why === undefined ? found === text : refused(found) && new RegExp(why).test(found.refused);
      yield [name, fits ? "" : `${JSON.stringify(found)} where ${why ?? text} is expected`];
    }
    for (const { vkey, holds: expected } of vectors.keys) {
      const found = await value(async () => (await on.Verifier.fromVkey(vkey)).vkey);
      yield [`key ${vkey}`, expected ? same(found, vkey) : holds(found, false)];
    }
    for (const { value: written, stands } of vectors.values) {
      yield [`value ${written}`, holds(await value(() => on.compose("hansa-test/v1", [["title", written]])), stands)];
    }
    for (const { text, fields } of vectors.fields) {
      const found = await value(() => on.read({ text }, "hansa-test/v1", ["a", "b"]));
      yield [`fields of ${text}`, fields ? same(found, fields) : holds(found, false)];
    }
    for (const { seed, name, text, note } of vectors.signed) {
      const found = await value(() => sign(on, seed, name, text));
      yield [`signing ${text}`, note ? same(on.base64(found), note) : holds(found, false)];
    }
  },

  async *log(on, vectors) {
    for (const { name, note, log, size, root } of vectors.checkpoints) {
      const verifier = await on.Verifier.fromVkey(log);
      const found = await value(() => on.openCheckpoint(bytes(note), verifier));
      yield [name, size === null ? holds(found, false) : same([String(found.size), on.base64(found.root)], [size, root])];
    }
    for (const { name, leaf, index, size, path, root, holds: expected } of vectors.inclusion) {
      const proof = [bytes(leaf), BigInt(index), BigInt(size), path.map(bytes), bytes(root)];
      yield [name, holds(await value(() => on.verifyInclusion(...proof)), expected)];
    }
    for (const { name, old, old_root, size, path, root, holds: expected } of vectors.consistency) {
      const proof = [BigInt(old), bytes(old_root), BigInt(size), bytes(root), path.map(bytes)];
      yield [name, holds(await value(() => on.verifyConsistency(...proof)), expected)];
    }
    for (const { name, log, receipt, kind, at_ms } of vectors.receipts) {
      const verifier = await on.Verifier.fromVkey(log);
      const found = await value(async () => (await on.openReceipt(receipt, verifier)).record);
      yield [name, kind === null ? holds(found, false) : same([found.kind, found.atMs], [kind, at_ms])];
    }
    for (const { name, leaf, head, length, record } of vectors.leaves) {
      const written = leaf === undefined ? on.concat(on.utf8(head), new Uint8Array(length - head.length).fill(120)) : bytes(leaf);
      const found = await value(() => on.readRecord(written));
      const facts = record && { kind: found.kind, at_ms: found.atMs, body_bytes: found.body?.length };
      yield [name, record ? same(facts, record) : holds(found, false)];
    }
  },

  async *cosignatures(on, vectors) {
    const log = await on.Verifier.fromVkey(vectors.log);
    for (const { name, note, witnesses, times } of vectors.notes) {
      const known = await Promise.all(witnesses.map((vkey) => on.Cosignatory.fromVkey(vkey)));
      const found = await value(async () => Object.fromEntries((await on.cosigned(bytes(note), log, known)).times));
      yield [name, times ? same(found, times) : holds(found, false)];
    }
    for (const { vkey, holds: expected } of vectors.keys) {
      const found = await value(async () => (await on.Cosignatory.fromVkey(vkey)).vkey);
      yield [`key ${vkey}`, expected ? same(found, vkey) : holds(found, false)];
    }
  },

  async *ballots(on, vectors) {
    for (const { name, text, fields } of vectors.ballots) {
      const found = await value(() => on.readBallot({ text }));
      yield [name, fields ? same(found, fields) || same(on.ballotText(found), text) : holds(found, false)];
    }
    const members = new Map();
    for (const [name, vkey] of Object.entries(vectors.charter.members)) members.set(name, await on.Verifier.fromVkey(vkey));
    const charter = { consortium: vectors.charter.consortium, members };
    for (const { name, note, holds: expected } of vectors.delegations) {
      const found = await value(() => on.openBallotKey(bytes(note), charter));
      yield [name, holds(found, expected)];
      if (expected) yield [`${name}, written again`, same(on.ballotKeyText(found), on.parse(bytes(note)).text)];
    }
    const member = await on.Verifier.fromVkey(vectors.member);
    for (const { name, note, delegation, at_ms, holds: expected } of vectors.signed) {
      const delegated = delegation && on.readBallotKey(on.parse(bytes(delegation)));
      yield [name, holds(await value(() => on.openBallot(bytes(note), member, delegated, at_ms)), expected)];
    }
  },

  async *tally(on, vectors) {
    for (const { name, expected, ...vote } of vectors) {
      const found = await counted(on, vote);
      const { phase = found.phase, closes_ms = found.closes_ms, rules, electorate } = vote;
      yield [name, same(found, { facts: expected, phase, closes_ms, rules, electorate })];
    }
  },

  async *c2sp(on, { note, sumdb, cosigned }) {
    for (const { vkey, note: written } of [note, sumdb]) {
      const verifier = await on.Verifier.fromVkey(vkey);
      const found = await value(() => on.openNote(on.utf8(written), [verifier]));
      yield [vkey, holds(found, true)];
    }
    const keys = cosigned.policy.split("\n").map((line) => line.split(" "));
    const log = await on.Verifier.fromVkey(keys.find(([word]) => word === "log")[1]);
    const witnesses = await Promise.all(
      keys.filter(([word]) => word === "witness").map(([, , vkey]) => on.Cosignatory.fromVkey(vkey)),
    );
    const found = await on.cosigned(on.utf8(cosigned.checkpoint), log, witnesses);
    yield ["public witnesses", same([Number(found.checkpoint.size), [...found.times.keys()].sort()], [cosigned.size, [...cosigned.witnesses].sort()])];
    const changed = on.utf8(cosigned.checkpoint.replace("\n17157\n", "\n17158\n"));
    yield ["another tree", holds(await value(() => on.cosigned(changed, log, witnesses)), false)];
  },

  async *"merkle-inclusion"(on, { cases }) {
    for (const { name, leafIdx, treeSize, root, leafHash, proof, wantErr } of cases) {
      const given = [await unpacked(on, leafHash), BigInt(leafIdx), BigInt(treeSize), (proof ?? []).map(bytes), await unpacked(on, root)];
      yield [name, holds(await value(() => on.verifyInclusion(...given)), !wantErr)];
    }
  },

  async *"merkle-consistency"(on, { cases }) {
    for (const { name, size1, size2, root1, root2, proof, wantErr } of cases) {
      const given = [BigInt(size1), await unpacked(on, root1), BigInt(size2), await unpacked(on, root2), (proof ?? []).map(bytes)];
      yield [name, holds(await value(() => on.verifyConsistency(...given)), !wantErr || name === EMPTY_IS_A_PREFIX)];
    }
  },
};

/** Some cases say only "don't care" where a hash stands: then any hash, so that they fail for what they test. */
async function unpacked(on, written) {
  const data = bytes(written ?? "");
  return [0, 32].includes(data.length) ? data : on.sha256(data);
}

/** One vote of tally.json, counted. */
export async function counted(on, { opening, ballots, now_ms, motions = [] }) {
  const of = await on.readOpening(opening);
  const cast = ballots.map(({ index, at_ms, text }) => [index, at_ms, on.readBallot({ text })]);
  const moved = motions.map(({ index, at_ms, text }) => [index, at_ms, on.readMotion({ text })]);
  const count = on.tally(of, cast, now_ms, moved);
  return {
    facts: on.facts(count), phase: count.phase, closes_ms: count.closesMs, rules: of.rulesDigest, electorate: of.electorateDigest,
  };
}

async function sign(on, seed, name, text) {
  const pkcs8 = Uint8Array.from((`302e020100300506032b657004220420${seed}`).match(/../g), (pair) => Number.parseInt(pair, 16));
  const key = await crypto.subtle.importKey("pkcs8", pkcs8, "Ed25519", true, ["sign"]);
  const { x } = await crypto.subtle.exportKey("jwk", key);
  const publicBytes = bytes(x.replaceAll("-", "+").replaceAll("_", "/") + "=");
  const verifier = await on.Verifier.of(name, publicBytes);
  return on.signNote(text, verifier, (message) => crypto.subtle.sign("Ed25519", key, message));
}
