// What this browser remembers from one visit to the next (IndexedDB): the key that signs its ballots, the journal's last
// checkpoint and key, its own receipts. The private key is never extractable: scripts can sign with it, not read it.

import { base64, fromBase64 } from "./verify/bytes.js";
import { Verifier } from "./verify/notes.js";
import { ballotKeyName } from "./verify/delegating.js";
import { checkExtends } from "./verify/log.js";
import { ProofError } from "./verify/merkle.js";

const STORES = ["keys", "logs", "receipts"];

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("hansa", 1);
    request.onupgradeneeded = () => STORES.forEach((name) => request.result.createObjectStore(name));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function inStore(name, mode, act) {
  const database = await opened();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(name, mode);
      const request = act(transaction.objectStore(name));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

const get = (name, key) => inStore(name, "readonly", (store) => store.get(key));
const put = (name, key, value) => inStore(name, "readwrite", (store) => store.put(value, key));
const remove = (name, key) => inStore(name, "readwrite", (store) => store.delete(key));

/** Why this browser can neither sign nor check a signature; empty: it can. */
export async function unable() {
  if (!isSecureContext) return "This address is not secure: a browser signs and checks only on https, or on its own machine.";
  try {
    await crypto.subtle.generateKey("Ed25519", false, ["sign", "verify"]);
    return "";
  } catch {
    return "This browser does not know Ed25519; Chromium 137, Firefox 129 and Safari 17 do.";
  }
}

/** The member's ballot key of this browser: {verifier, sign}; null: there is none. */
export async function ballotKey(consortium, member) {
  const kept = await get("keys", `${consortium}/${member}`);
  if (!kept) return null;
  const verifier = await Verifier.of(ballotKeyName(member), kept.publicBytes);
  return { verifier, sign: (message) => crypto.subtle.sign("Ed25519", kept.privateKey, message) };
}

/** Make the member's ballot key, unless there is one. */
export async function makeBallotKey(consortium, member) {
  const pair = await crypto.subtle.generateKey("Ed25519", false, ["sign", "verify"]);
  const publicBytes = new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey));
  if (!(await get("keys", `${consortium}/${member}`))) {
    await put("keys", `${consortium}/${member}`, { privateKey: pair.privateKey, publicBytes });
  }
  return ballotKey(consortium, member);
}

export const forgetBallotKey = (consortium, member) => remove("keys", `${consortium}/${member}`);

/**
 * Hold the log to what it said before: its key is the one this browser saw first, and the checkpoint extends, or is a part of,
 * the last one seen. `extension`: (smaller, larger size) -> base64 hashes of the proof. Gives the size known before, 0 for the
 * first time. Throws ProofError or NoteError: then the log contradicts itself.
 */
export async function hold(checkpoint, logKey, extension) {
  const known = await get("logs", checkpoint.origin);
  const seen = { key: logKey, size: String(checkpoint.size), root: base64(checkpoint.root) };
  if (!known) {
    await put("logs", checkpoint.origin, seen);
    return 0n;
  }
  if (known.key !== logKey) {
    throw new ProofError(`the log's key is ${logKey}, this browser knows it as ${known.key}; ask the other members`);
  }
  const before = { size: BigInt(known.size), root: fromBase64(known.root, "the remembered root") };
  const [earlier, later] = before.size <= checkpoint.size ? [before, checkpoint] : [checkpoint, before];
  const path = earlier.size === later.size ? [] : await extension(earlier.size, later.size);
  await checkExtends(earlier, later, path);
  if (later === checkpoint) await put("logs", checkpoint.origin, seen);
  return before.size;
}

/** Take the next checkpoint of this log as the first. */
export const forgetLog = (origin) => remove("logs", origin);

/** Keep what proves that a ballot was taken. */
export const keepReceipt = (proposal, receipt) => put("receipts", proposal, receipt);

/** The last receipt that this browser was given for a ballot on the proposal. */
export const receiptOf = (proposal) => get("receipts", proposal);
