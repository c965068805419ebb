// A vote counted again from its records: every record is in the log, every note is its signer's, and the count follows.

import { canonicalJson, digest, fromBase64, readJson, text, utf8 } from "./bytes.js";
import { readBallot, readMotion } from "./ballots.js";
import { openBallot, openBallotKey } from "./delegating.js";
import { openCheckpoint, readHash, readRecord } from "./log.js";
import { ProofError, leafHash, verifyInclusion } from "./merkle.js";
import { NoteError, Verifier, openSigned, parse } from "./notes.js";
import { readOpening } from "./opening.js";
import { facts, tally } from "./tally.js";

const DECIDED = ["passed", "defeated", "ranked"];

/**
 * Count again what an answer of the view `evidence` proves, as of `nowMs` (the log's time; a decided vote is counted as of its
 * outcome). Gives the checkpoint, the count, the ballots in order, the outcome on record (null: none yet) and whether it is
 * what the count comes to. Throws NoteError or ProofError naming the record that does not hold.
 */
export async function recount(evidence, log, nowMs) {
  const checkpoint = await openCheckpoint(utf8(evidence.checkpoint), log);
  const records = [];
  for (const entry of evidence.entries) records.push(await proven(entry, checkpoint));
  records.sort((one, other) => one.index - other.index);
  const opening = await openingOf(records, evidence.proposal);
  const charter = await charterOf(records, opening.charter);
  await checkProposal(records, opening, charter);
  const { ballots, motions } = await spoken(records, opening, charter);
  const outcome = outcomeOf(records, opening.proposal);
  const count = tally(opening, ballots, outcome ? outcome.atMs : nowMs, motions);
  const counted = { proposal: opening.proposal, number: opening.number, ...facts(count) };
  const agrees = outcome === null || same(counted, outcome.facts);
  return { checkpoint, opening, ballots, count, outcome: outcome && outcome.facts, agrees };
}

async function proven(entry, checkpoint) {
  const leaf = fromBase64(entry.leaf, `record ${entry.index}`);
  if (!Number.isSafeInteger(entry.index)) throw new ProofError("a record without a place in the log");
  const path = entry.path.map((hash) => readHash(hash, `a hash of record ${entry.index}`));
  await verifyInclusion(await leafHash(leaf), BigInt(entry.index), checkpoint.size, path, checkpoint.root);
  return { index: entry.index, ...readRecord(leaf) };
}

const factsOf = (record) => readJson(text(record.body, `record ${record.index}`));

async function openingOf(records, proposal) {
  for (const record of records.filter(({ kind }) => kind === "opening")) {
    const found = await readOpening(factsOf(record));
    if (found.proposal === proposal) return found;
  }
  throw new NoteError("the opening of the proposal is not among its records");
}

/** The keys of the members under which the proposal opened. */
async function charterOf(records, named) {
  for (const record of records.filter(({ kind }) => kind === "charter")) {
    if ((await digest(record.body)) !== named) continue;
    const { consortium, members } = JSON.parse(text(record.body, "the charter"));
    const known = await Promise.all(members.map(async ({ name, key }) => [name, await Verifier.fromVkey(key)]));
    return { consortium: consortium.name, members: new Map(known) };
  }
  throw new NoteError("the charter that the vote opened under is not among its records");
}

async function checkProposal(records, opening, charter) {
  for (const { body } of records.filter(({ kind }) => kind === "proposal")) {
    const note = parse(body);
    if ((await digest(utf8(note.text))) !== opening.proposal) continue;
    const proposer = /^proposer (.*)$/m.exec(note.text)?.[1];
    await openSigned(body, member(charter, proposer));
    return;
  }
  throw new NoteError("the proposal itself is not among its records");
}

async function spoken(records, opening, charter) {
  const [ballots, motions, keys] = [[], [], new Map()];
  for (const { index, kind, atMs, body } of records) {
    if (kind === "ballot-key") {
      const delegation = await lawful(body, charter);
      if (delegation) keys.set(delegation.member, delegation);
    } else if (kind === "ballot") {
      const ballot = readBallot(parse(body));
      if (ballot.proposal !== opening.proposal) continue;
      await openBallot(body, member(charter, ballot.voter), keys.get(ballot.voter) ?? null, atMs);
      ballots.push([index, atMs, ballot]);
    } else if (kind === "motion") {
      const motion = readMotion(parse(body));
      if (motion.proposal !== opening.proposal) continue;
      await openSigned(body, member(charter, motion.member));
      motions.push([index, atMs, motion]);
    }
  }
  return { ballots, motions };
}

/** A delegation, if it holds under this charter; null: no ballot counts by it. */
async function lawful(body, charter) {
  try {
    return await openBallotKey(body, charter);
  } catch (error) {
    if (error instanceof NoteError) return null;
    throw error;
  }
}

function outcomeOf(records, proposal) {
  for (const record of records.filter(({ kind }) => kind === "outcome")) {
    const found = factsOf(record);
    if (found.proposal === proposal && DECIDED.includes(found.state)) return { facts: found, atMs: record.atMs };
  }
  return null;
}

function member(charter, name) {
  const found = charter.members.get(name);
  if (!found) throw new NoteError(`${name} was no member when the vote opened`);
  return found;
}

/** Equal as JSON, whatever the order of keys. */
const same = (one, other) => canonicalJson(one) === canonicalJson(other);
