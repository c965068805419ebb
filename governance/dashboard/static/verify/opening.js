// What is frozen when a proposal opens, and the two digests of it that a ballot names (commons/opening.py).

import { NoteError, canonicalJson, digest, utf8 } from "./bytes.js";

const FIRST = {
  consortium: "string", proposal: "string", number: "number", electorate: "weights", quorum_percent: "number",
  pass_percent: "number", opened_ms: "number", closes_ms: "number", charter: "string",
};
const LATER = {
  share: "", members: "", objection: "", extend_ms: 0, queue_ms: 0, grace_ms: 0, officers: [], candidates: [], credits: 0,
  dormant: [], contributed: {},
};
const RULES = [
  "share", "members", "objection", "extend_ms", "queue_ms", "grace_ms", "officers", "candidates", "credits",
];

/**
 * Read the facts of an OPENING record (`readJson`): its fields, weights as BigInts in a Map, and `rulesDigest` and `electorateDigest`.
 * Throws NoteError for what is no opening in its one form.
 */
export async function readOpening(facts) {
  check(facts);
  const of = { ...structuredClone(LATER), ...facts };
  const rules = {
    quorum_percent: of.quorum_percent, pass_percent: of.pass_percent, window_ms: of.closes_ms - of.opened_ms,
  };
  for (const name of RULES) if (name in facts) rules[name] = facts[name];
  const named = of.dormant.length ? [of.electorate, of.dormant] : of.electorate;
  return Object.freeze({
    ...of,
    electorate: new Map(Object.entries(of.electorate).map(([member, weight]) => [member, BigInt(weight)])),
    windowMs: rules.window_ms,
    rulesDigest: await digest(utf8(canonicalJson(rules))),
    electorateDigest: await digest(utf8(canonicalJson(named))),
  });
}

function check(facts) {
  const wrong = () => new NoteError("not the facts of an opening in their one form");
  if (!isObject(facts)) throw wrong();
  for (const [name, value] of Object.entries(facts)) {
    const kind = FIRST[name] ?? kindOf(LATER[name]);
    if (!fits(kind, value) || (name in LATER && canonicalJson(value) === canonicalJson(LATER[name]))) throw wrong();
  }
  if (Object.keys(FIRST).some((name) => !(name in facts)) || facts.opened_ms >= facts.closes_ms) throw wrong();
}

function kindOf(value) {
  if (Array.isArray(value)) return "names";
  return isObject(value) ? "amounts" : typeof value;
}

function fits(kind, value) {
  switch (kind) {
    case "string":
      return typeof value === "string";
    case "number":
      return Number.isSafeInteger(value);
    case "names":
      return Array.isArray(value) && value.every((name) => typeof name === "string");
    case "weights":
      return isObject(value) && Object.values(value).every((weight) => isWhole(weight) && weight >= 1);
    case "amounts":
      return isObject(value) && Object.values(value).every((amount) => isWhole(amount) && amount >= 0);
    default:
      return false;
  }
}

const isWhole = (value) => typeof value === "bigint" || Number.isSafeInteger(value);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
