// Proofs of the Merkle tree of RFC 6962 (SHA-256), verified as commons/merkle.py verifies them. Sizes and indexes are
// BigInts: a log may hold more leaves than a double counts.

import { equal, hex, sha256 } from "./bytes.js";

export class ProofError extends Error {}

export const HASH_BYTES = 32;
export const PROOF_HASHES_MAX = 128;

export const leafHash = (leaf) => sha256([0], leaf);

export const nodeHash = (left, right) => sha256([1], left, right);

/** Throws ProofError unless `path` leads from `leaf` (a leaf hash) at `index` to this root of `size` leaves. */
export async function verifyInclusion(leaf, index, size, path, root) {
  checkHashes("inclusion", [leaf, root, ...path]);
  if (index < 0n || index >= size) throw new ProofError(`inclusion proof for leaf ${index} of a tree of ${size}`);
  const inner = bits(index ^ (size - 1n));
  const expected = inner + ones(index >> BigInt(inner));
  if (path.length !== expected) {
    throw new ProofError(`inclusion proof of ${path.length} hashes for leaf ${index} of ${size}, expected ${expected}`);
  }
  const found = await chainLeft(await chainInner(leaf, path.slice(0, inner), index), path.slice(inner));
  if (!equal(found, root)) {
    throw new ProofError(`leaf ${index} of ${size} is not under root ${short(root)}: got ${short(found)}`);
  }
}

/** Throws ProofError unless `path` shows that the tree (size, root) extends the tree (old, oldRoot). */
export async function verifyConsistency(old, oldRoot, size, root, path) {
  checkHashes("consistency", [oldRoot, root, ...path]);
  if (old < 0n || old > size) throw new ProofError(`a tree of ${size} leaves does not extend one of ${old}`);
  if (old === 0n || old === size) {
    if (path.length) {
      throw new ProofError(`consistency proof from ${old} to ${size} must be empty, it has ${path.length} hashes`);
    }
    if (old === 0n && !equal(oldRoot, await sha256([]))) throw new ProofError("the root of the empty tree is wrong");
    if (old === size && !equal(oldRoot, root)) {
      throw new ProofError(`two roots for size ${size}: ${short(oldRoot)} and ${short(root)}`);
    }
    return;
  }
  const shift = BigInt(bits(old & -old) - 1); // the old tree's last complete subtree has this level
  const complete = old === 1n << shift;
  const [seed, rest] = complete ? [oldRoot, path] : [path[0], path.slice(1)];
  const index = (old - 1n) >> shift;
  const inner = bits(index ^ ((size - 1n) >> shift));
  const expected = inner + ones(index >> BigInt(inner));
  if (!seed || rest.length !== expected) {
    const all = expected + (complete ? 0 : 1);
    throw new ProofError(`consistency proof from ${old} to ${size} has ${path.length} hashes, expected ${all}`);
  }
  const [near, far] = [rest.slice(0, inner), rest.slice(inner)];
  const before = await chainLeft(await chainInnerRight(seed, near, index), far);
  if (!equal(before, oldRoot)) {
    throw new ProofError(`the tree of ${old} was another: root ${short(oldRoot)}, proof ${short(before)}`);
  }
  const now = await chainLeft(await chainInner(seed, near, index), far);
  if (!equal(now, root)) {
    throw new ProofError(`the proof leads to root ${short(now)}, not ${short(root)}, at size ${size}`);
  }
}

async function chainInner(seed, path, index) {
  let found = seed;
  for (const [level, sibling] of path.entries()) {
    found = right(index, level) ? await nodeHash(sibling, found) : await nodeHash(found, sibling);
  }
  return found;
}

async function chainInnerRight(seed, path, index) {
  let found = seed;
  for (const [level, sibling] of path.entries()) {
    if (right(index, level)) found = await nodeHash(sibling, found);
  }
  return found;
}

async function chainLeft(seed, path) {
  let found = seed;
  for (const sibling of path) found = await nodeHash(sibling, found);
  return found;
}

function checkHashes(what, hashes) {
  if (hashes.length > PROOF_HASHES_MAX) throw new ProofError(`${what} proof of ${hashes.length} hashes`);
  if (hashes.some((hash) => hash.length !== HASH_BYTES)) {
    throw new ProofError(`${what} proof with a hash that is not ${HASH_BYTES} bytes`);
  }
}

const right = (index, level) => (index >> BigInt(level)) & 1n;
const bits = (value) => (value ? value.toString(2).length : 0);
const ones = (value) => value.toString(2).replaceAll("0", "").length;
const short = (hash) => hex(hash).slice(0, 16);
