// What the journal says in public: signed checkpoints (C2SP tlog-checkpoint), records and their proofs.

import { NoteError, fromBase64, whole, text } from "./bytes.js";
import { HASH_BYTES, ProofError, leafHash, verifyConsistency, verifyInclusion } from "./merkle.js";
import { openNote } from "./notes.js";

const LEAF_BYTES_MAX = 65535;
const LEAF = /^([a-z-]+) (0|[1-9][0-9]*)$/;

/** What a note says, if it is a checkpoint; who signed it is for the caller to check. Throws NoteError. */
export function readCheckpoint(note) {
  const [origin, size, root, ...more] = note.text.slice(0, -1).split("\n");
  if (root === undefined || more.length || whole(size) === null) {
    throw new NoteError("a checkpoint has three lines: origin, size, root");
  }
  return Object.freeze({ origin, size: whole(size), root: readHash(root, "the checkpoint's root"), text: note.text });
}

/** Check the signature and read it; the origin must be the verifier's name. Throws NoteError. */
export async function openCheckpoint(data, verifier) {
  const found = readCheckpoint(await openNote(data, [verifier]));
  if (found.origin !== verifier.name) {
    throw new NoteError(`checkpoint of log '${found.origin.slice(0, 60)}', expected '${verifier.name}'`);
  }
  return found;
}

/** The hash that base64 of 44 characters stands for; `what` names it in the NoteError. */
export function readHash(written, what) {
  const hash = fromBase64(written, what);
  if (hash.length !== HASH_BYTES) throw new NoteError(`${what} is not the base64 of ${HASH_BYTES} bytes`);
  return hash;
}

/** A record of the journal from its leaf: kind, log time in ms, body. Throws NoteError when it is none. */
export function readRecord(leaf) {
  const end = leaf.indexOf(10);
  const head = end < 0 ? null : LEAF.exec(text(leaf.slice(0, end), "a record's head"));
  if (!head || leaf.length > LEAF_BYTES_MAX) throw new NoteError("not a journal record");
  return Object.freeze({ kind: head[1], atMs: Number(head[2]), body: leaf.slice(end + 1) });
}

/**
 * Check that the leaf stands in the log at its index, by a receipt {index, leaf, path, checkpoint} whose hashes and leaf are
 * base64; its record and the checkpoint. Throws NoteError or ProofError.
 */
export async function openReceipt(receipt, verifier) {
  const checkpoint = await openCheckpoint(new TextEncoder().encode(receipt.checkpoint), verifier);
  const leaf = fromBase64(receipt.leaf, "the leaf");
  const path = receipt.path.map((hash) => readHash(hash, "a hash of the proof"));
  const index = whole(String(receipt.index));
  if (index === null) throw new ProofError("the receipt names no record");
  await verifyInclusion(await leafHash(leaf), index, checkpoint.size, path, checkpoint.root);
  return { record: readRecord(leaf), index, checkpoint };
}

/** Check that a checkpoint extends an earlier one, by base64 hashes. Throws NoteError or ProofError. */
export async function checkExtends(earlier, later, path) {
  const hashes = path.map((hash) => readHash(hash, "a hash of the proof"));
  await verifyConsistency(earlier.size, earlier.root, later.size, later.root, hashes);
}
