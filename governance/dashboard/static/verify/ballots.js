// What members sign in a vote: ballots, motions, the key they vote with; as commons/ballots.py and commons/motions.py say.

import { whole } from "./bytes.js";
import { NoteError, compose, kindOf, read } from "./notes.js";
import { QUADRATIC, RANKED } from "./ranking.js";

export const CHOICES = Object.freeze(["for", "against", "abstain"]);
export const BALLOT = "hansa-ballot/v1";
export const BALLOT_WITH_REASON = "hansa-ballot/v2";
export const BALLOT_KEY = "hansa-ballot-key/v1";
export const MOTION = "hansa-motion/v1";

const BALLOT_FIELDS = ["consortium", "proposal", "rules", "electorate", "voter", "choice", "nonce", "cast-at"];
const KEY_FIELDS = ["consortium", "member", "key", "expires-ms", "nonce"];
const MOTION_FIELDS = ["consortium", "proposal", "member", "motion", "reason", "nonce"];
const MOTIONS = ["withdraw", "discuss", "resume", "veto"];
const DIGEST = /^sha256:[0-9a-f]{64}$/;
const NONCE = /^[0-9a-f]{16,64}$/;

/** The text that a ballot signs, from its fields by their names. Throws NoteError. */
export function ballotText(ballot) {
  const pairs = BALLOT_FIELDS.map((key) => [key, ballot[key]]);
  return ballot.reason ? compose(BALLOT_WITH_REASON, [...pairs, ["reason", ballot.reason]]) : compose(BALLOT, pairs);
}

/** The fields of a ballot's note; `reason` is empty where it has none. Throws NoteError when the note is no ballot. */
export function readBallot(note) {
  const reasoned = kindOf(note) === BALLOT_WITH_REASON;
  const found = reasoned
    ? read(note, BALLOT_WITH_REASON, [...BALLOT_FIELDS, "reason"])
    : { ...read(note, BALLOT, BALLOT_FIELDS), reason: "" };
  if (!CHOICES.includes(found.choice) && !RANKED.test(found.choice) && !QUADRATIC.test(found.choice)) {
    throw new NoteError(`choice is '${found.choice.slice(0, 40)}', expected for, against, abstain, or an order`);
  }
  for (const key of ["proposal", "rules", "electorate", ...(reasoned ? ["reason"] : [])]) {
    if (!DIGEST.test(found[key])) throw new NoteError(`${key} is '${found[key].slice(0, 80)}', expected a digest`);
  }
  if (!NONCE.test(found.nonce)) throw new NoteError("nonce is not 16 to 64 lower-case hex digits");
  return Object.freeze(found);
}

/** The text by which a member lets another key sign its ballots until `expires-ms`. Throws NoteError. */
export const ballotKeyText = (delegation) => compose(BALLOT_KEY, KEY_FIELDS.map((key) => [key, String(delegation[key])]));

/** The fields of a delegation's note; `expires-ms` is a BigInt. Throws NoteError. */
export function readBallotKey(note) {
  const found = read(note, BALLOT_KEY, KEY_FIELDS);
  const expires = whole(found["expires-ms"]);
  if (expires === null) throw new NoteError(`field 'expires_ms' is no whole number: '${found["expires-ms"].slice(0, 40)}'`);
  return Object.freeze({ ...found, "expires-ms": expires });
}

/** The fields of a motion's note. Throws NoteError. */
export function readMotion(note) {
  const found = read(note, MOTION, MOTION_FIELDS);
  if (!MOTIONS.includes(found.motion)) throw new NoteError(`field 'motion' cannot be '${found.motion.slice(0, 40)}'`);
  return Object.freeze(found);
}
