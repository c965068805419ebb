// Signed notes (c2sp.org/signed-note) with Ed25519, as commons/notes.py reads and writes them, and nothing else.

import { NoteError, base64, concat, equal, fromBase64, hex, sha256, text, utf8 } from "./bytes.js";

export { NoteError };

export const NOTE_BYTES_MAX = 16384;
export const SIGNATURES_MAX = 16;
export const VALUE_CHARS_MAX = 1000;

const ED25519 = 1;
const DASH = "— ";
const KIND = /^[a-z][a-z0-9-]*\/v[1-9][0-9]*$/;
const FIELD = /^[a-z][a-z0-9-]*$/;
const KEY_ID = /^[0-9a-f]{8}$/;
const CONTROL = /[\x00-\x1f\x7f-\x9f\ud800-\udfff]/u;
const CONTROL_BUT_NEWLINE = /[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]/u;
// Python's white space, which is not JavaScript's: a byte order mark is none, the separators U+001C to U+001F are.
const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const NO_NAME = new RegExp(`[${SPACE}+]`, "u");
const OUTER_SPACE = new RegExp(`^[${SPACE}]|[${SPACE}]$`, "u");
// Changes what a person sees without changing what is signed (Unicode TR 36, CVE-2021-42574).
const REORDERING = /[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/u;

/** One signature line, as it stands in the note. Nothing is known about its worth before `openNote`. */
export class Signature {
  constructor(name, keyId, value) {
    Object.assign(this, { name, keyId, value });
    Object.freeze(this);
  }

  get line() {
    return `${DASH}${this.name} ${base64(concat(this.keyId, this.value))}\n`;
  }

  by(name, keyId) {
    return this.name === name && equal(this.keyId, keyId);
  }
}

/** A public key and the name it goes by. */
export class Verifier {
  constructor(name, publicBytes, keyId, key) {
    Object.assign(this, { name, public: publicBytes, keyId, key });
    Object.freeze(this);
  }

  static async of(name, publicBytes) {
    checkName(name);
    const keyId = (await sha256(utf8(`${name}\n`), [ED25519], publicBytes)).slice(0, 4);
    return new Verifier(name, publicBytes, keyId, await importKey(name, publicBytes));
  }

  /** Read `<name>+<key id, 8 hex digits>+<base64>`; the id must be the key's. Throws NoteError. */
  static async fromVkey(vkey) {
    const { name, keyId, key } = splitKey(vkey, "verifier key");
    if (key.length !== 33 || key[0] !== ED25519) {
      throw new NoteError(`verifier key of '${name}' is not Ed25519 (type 0x01, 32 bytes)`);
    }
    const verifier = await Verifier.of(name, key.slice(1));
    if (hex(verifier.keyId) !== keyId) {
      throw new NoteError(`verifier key of '${name}' says id ${keyId}, its key has ${hex(verifier.keyId)}`);
    }
    return verifier;
  }

  get vkey() {
    return `${this.name}+${hex(this.keyId)}+${base64(concat([ED25519], this.public))}`;
  }

  verifies(message, signature) {
    return crypto.subtle.verify("Ed25519", this.key, signature, utf8(message));
  }
}

/** Take a note apart, without believing it. Only one writing of a note is taken. Throws NoteError with the reason. */
export function parse(data, limit = NOTE_BYTES_MAX) {
  if (data.length > limit) throw new NoteError(`note of ${data.length} bytes, the limit is ${limit}`);
  const written = text(data, "note");
  const split = written.lastIndexOf("\n\n");
  if (split < 0) throw new NoteError("note has no blank line between text and signatures");
  const [said, block] = [written.slice(0, split + 1), written.slice(split + 2)];
  checkText(said);
  if (!block) throw new NoteError("note has no signature");
  if (!block.endsWith("\n")) throw new NoteError("the last signature line has no newline");
  const lines = block.slice(0, -1).split("\n");
  if (lines.length > SIGNATURES_MAX) {
    throw new NoteError(`note has ${lines.length} signatures, at most ${SIGNATURES_MAX} are read`);
  }
  const signatures = lines.map(signature);
  if (`${said}\n${signatures.map((one) => one.line).join("")}` !== written) {
    throw new NoteError("note is not in canonical form");
  }
  return Object.freeze({ text: said, signatures, data });
}

/**
 * Parse and check a note against the keys trusted for it: at least one of them has signed, and every signature that
 * claims one of them holds; others are ignored, as C2SP asks. Throws NoteError.
 */
export async function openNote(data, verifiers) {
  const note = parse(data);
  let found = 0;
  for (const one of note.signatures) {
    const verifier = verifiers.find((known) => one.by(known.name, known.keyId));
    if (!verifier) continue;
    found += 1;
    if (!(await verifier.verifies(note.text, one.value))) {
      throw new NoteError(`the signature by '${verifier.name}' is wrong: the note was changed or is forged`);
    }
  }
  if (!found) {
    const signed = note.signatures.map((one) => `'${one.name}'`).join(", ");
    const wanted = verifiers.map((known) => `${known.name}+${hex(known.keyId)}`).sort().join(", ") || "nobody";
    throw new NoteError(`no trusted key has signed: signed by ${signed}, trusted here ${wanted}`);
  }
  return note;
}

/** A note that exactly this key has signed, and nobody else. Throws NoteError. */
export async function openSigned(data, verifier) {
  const { length } = parse(data).signatures;
  if (length !== 1) throw new NoteError(`the note has ${length} signatures, expected only that of ${verifier.name}`);
  return openNote(data, [verifier]);
}

/**
 * The whole note: `said`, a blank line, this key's signature. `sign` gives the 64 bytes over a message. The same text
 * gives the same bytes. Throws NoteError for what no note can hold.
 */
export async function signNote(said, verifier, sign) {
  checkText(said);
  if (said.startsWith("cosignature/v1\n")) {
    throw new NoteError("a note must not begin 'cosignature/v1': it would pass for a cosignature");
  }
  const value = new Uint8Array(await sign(utf8(said)));
  return utf8(`${said}\n${new Signature(verifier.name, verifier.keyId, value).line}`);
}

/** The text of a note of this kind: the kind, then one `key value` per line, in the order given. Throws NoteError. */
export function compose(kind, fields) {
  if (!KIND.test(kind)) throw new NoteError(`'${kind}' is no kind of note`);
  for (const [key, value] of fields) {
    if (!FIELD.test(key)) throw new NoteError(`'${key}' is no name of a field`);
    checkValue(key, value);
  }
  return [kind, ...fields.map(([key, value]) => `${key} ${value}`)].map((line) => `${line}\n`).join("");
}

/** First line of the note's text. */
export const kindOf = (note) => note.text.slice(0, note.text.indexOf("\n"));

/** The fields of a note of this kind: exactly these keys, in this order; else NoteError. */
export function read(note, kind, keys) {
  const [first, ...lines] = note.text.slice(0, -1).split("\n");
  if (first !== kind) throw new NoteError(`the note begins '${first.slice(0, 60)}', expected '${kind}'`);
  const found = lines.map((line) => {
    const at = line.indexOf(" ");
    return at < 0 ? [line, ""] : [line.slice(0, at), line.slice(at + 1)];
  });
  if (found.length !== keys.length || found.some(([key], at) => key !== keys[at])) {
    const named = found.map(([key]) => key.slice(0, 40)).join(" ");
    throw new NoteError(
      `a ${kind} note has the fields '${keys.join(" ")}' in this order, this one '${named.slice(0, 400)}'`,
    );
  }
  for (const [key, value] of found) checkValue(key, value);
  return Object.fromEntries(found);
}

/** Name, key id in hex, and key bytes with their type first, of a key's text, unchecked. Throws NoteError. */
export function splitKey(written, what) {
  const [name, keyId, ...rest] = written.split("+");
  if (!rest.length || !KEY_ID.test(keyId)) {
    throw new NoteError(`not a ${what}: expected <name>+<8 hex digits>+<base64>`);
  }
  checkName(name);
  return { name, keyId, key: fromBase64(rest.join("+"), `${what} of '${name}'`) };
}

export async function importKey(name, publicBytes) {
  try {
    return await crypto.subtle.importKey("raw", publicBytes, "Ed25519", true, ["verify"]);
  } catch (error) {
    if (error.name === "NotSupportedError") throw error;
    throw new NoteError(`the key of '${name}' is no Ed25519 public key`);
  }
}

export function checkName(name) {
  if (!name || NO_NAME.test(name) || CONTROL.test(name) || REORDERING.test(name)) {
    throw new NoteError(`'${name}' cannot be a key's name: not empty, no spaces, no '+', nothing invisible`);
  }
}

function signature(line) {
  if (!line.startsWith(DASH)) {
    throw new NoteError(`signature line does not begin with an em dash and a space: '${line.slice(0, 40)}'`);
  }
  const rest = line.slice(DASH.length);
  const at = rest.indexOf(" ");
  if (at < 0) throw new NoteError(`signature line without a signature: '${line.slice(0, 40)}'`);
  const name = rest.slice(0, at);
  checkName(name);
  const raw = fromBase64(rest.slice(at + 1), `signature by '${name}'`);
  if (raw.length < 5) throw new NoteError(`signature by '${name}' is too short`);
  return new Signature(name, raw.slice(0, 4), raw.slice(4));
}

function checkText(said) {
  if (!said.endsWith("\n")) throw new NoteError("the text of a note must end with a newline");
  const wrong = CONTROL_BUT_NEWLINE.exec(said);
  if (wrong) throw new NoteError(`control character ${codePoint(wrong[0])} in the note`);
}

function checkValue(key, value) {
  const { length } = Array.from(value);
  if (length < 1 || length > VALUE_CHARS_MAX) {
    throw new NoteError(`field '${key}' has ${length} characters, 1 to ${VALUE_CHARS_MAX} are allowed`);
  }
  if (OUTER_SPACE.test(value)) throw new NoteError(`field '${key}' begins or ends with white space`);
  const wrong = CONTROL.exec(value) ?? REORDERING.exec(value);
  if (wrong) throw new NoteError(`field '${key}' holds ${codePoint(wrong[0])}, which hides or reorders text`);
}

const codePoint = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
