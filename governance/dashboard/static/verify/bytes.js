// Bytes and their writings: UTF-8, base64, hex, SHA-256. Runs in browsers and in node alike; so do all modules beside it.

export class NoteError extends Error {}

const encoder = new TextEncoder();

export const utf8 = (text) => encoder.encode(text);

/** The text of these bytes. A byte order mark is kept, so that text and bytes stay one. Throws NoteError. */
export function text(bytes, what) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new NoteError(`${what} is not UTF-8`);
  }
}

export function concat(...parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export const equal = (one, other) => one.length === other.length && one.every((byte, at) => byte === other[at]);

export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Standard base64 with padding. */
export const base64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));

/** What `base64` wrote so. Stray bits and missing padding are refused, so that bytes have one writing. */
export function fromBase64(written, what) {
  let binary;
  try {
    binary = atob(written);
  } catch {
    throw new NoteError(`${what} is not base64`);
  }
  if (btoa(binary) !== written) throw new NoteError(`${what} is not canonical base64`);
  return Uint8Array.from(binary, (character) => character.charCodeAt(0));
}

export async function sha256(...parts) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", concat(...parts)));
}

/** SHA-256 of exactly these bytes, as notes and charters write it. */
export const digest = async (bytes) => `sha256:${hex(await sha256(bytes))}`;

const PLACES = /^(?:0|[1-9][0-9]{0,18})$/;

/** A whole number of at most 19 digits in its one writing, as a BigInt; null for anything else. */
export const whole = (written) => (PLACES.test(written) ? BigInt(written) : null);

/** Less than, equal or more by code points, as Python orders strings. */
export function order(one, other) {
  const [a, b] = [Array.from(one), Array.from(other)];
  for (let at = 0; at < a.length && at < b.length; at += 1) {
    if (a[at] !== b[at]) return a[at].codePointAt(0) - b[at].codePointAt(0);
  }
  return a.length - b.length;
}

// A string, or a whole number of more digits than a double holds for certain.
const STRING_OR_LONG = /"(?:[^"\\]|\\.)*"|-?[0-9]{16,}(?![0-9.eE])/g;
const LONG = "\u0000long ";

/** Read JSON; a whole number that a double might not hold becomes a BigInt. Throws NoteError. */
export function readJson(written) {
  if (written.includes("\\u0000")) throw new NoteError("JSON with U+0000 in it");
  const marked = written.replace(STRING_OR_LONG, (token) =>
    token.startsWith('"') ? token : JSON.stringify(`${LONG}${token}`),
  );
  const revive = (_, value) =>
    typeof value === "string" && value.startsWith(LONG) ? number(BigInt(value.slice(LONG.length))) : value;
  try {
    return JSON.parse(marked, revive);
  } catch {
    throw new NoteError("not JSON");
  }
}

const number = (exact) => (Number.isSafeInteger(Number(exact)) ? Number(exact) : exact);

/** The one JSON text of a value: sorted keys, no white space; numbers are whole. Throws NoteError. */
export function canonicalJson(value) {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  switch (typeof value) {
    case "string":
      return JSON.stringify(value);
    case "bigint":
      return String(value);
    case "number":
      if (!Number.isSafeInteger(value)) throw new NoteError(`${value} is no whole number that can be held`);
      return String(value);
    case "object":
      if (value === null) break;
      return `{${Object.keys(value).sort(order).map((key) => `${JSON.stringify(key)}:${canonicalJson(value[key])}`).join(",")}}`;
    default:
  }
  throw new NoteError(`${value} has no place in an opening`);
}
