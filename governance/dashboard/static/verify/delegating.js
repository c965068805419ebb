// Whose key signs a ballot: the member's own, or the one key it delegated its ballots to (commons/delegating.py).

import { equal } from "./bytes.js";
import { readBallotKey } from "./ballots.js";
import { NoteError, Verifier, openSigned, parse } from "./notes.js";

export const ballotKeyName = (member) => `${member}/ballot`;

/**
 * The delegation in a note, signed by the member itself. `charter`: {consortium, members: member -> its Verifier}.
 * Throws NoteError saying why it does not hold.
 */
export async function openBallotKey(data, charter) {
  const delegation = readBallotKey(parse(data));
  const verifier = await Verifier.fromVkey(delegation.key);
  const member = charter.members.get(delegation.member);
  if (delegation.consortium !== charter.consortium || !member) {
    throw new NoteError(`'${delegation.member}' of '${delegation.consortium}' is no member here`);
  }
  if (verifier.name !== ballotKeyName(delegation.member)) {
    throw new NoteError(`the ballot key goes by '${verifier.name}', expected '${ballotKeyName(delegation.member)}'`);
  }
  if ([...charter.members.values()].some((known) => equal(known.public, verifier.public))) {
    throw new NoteError("a ballot key is a key of its own, this one is a member's");
  }
  await openSigned(data, member);
  return delegation;
}

/**
 * A ballot's note that the member (its Verifier) signed, or the key `delegated` (a delegation or null), before it expired.
 * Throws NoteError.
 */
export async function openBallot(data, member, delegated, atMs) {
  const name = ballotKeyName(member.name);
  if (parse(data).signatures[0].name !== name) return openSigned(data, member);
  if (!delegated) throw new NoteError(`${member.name} has delegated its ballots to no key`);
  if (BigInt(atMs) >= delegated["expires-ms"]) {
    throw new NoteError(`the ballot key of ${member.name} expired; ${member.name} delegates anew`);
  }
  return openSigned(data, await Verifier.fromVkey(delegated.key));
}
