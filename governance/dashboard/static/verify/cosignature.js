// Cosignatures of witnesses over a checkpoint (c2sp.org/tlog-cosignature, type 0x04), as commons/cosignature.py reads them.

import { base64, concat, hex, sha256, utf8 } from "./bytes.js";
import { openCheckpoint } from "./log.js";
import { NoteError, checkName, importKey, parse, splitKey } from "./notes.js";

const COSIGNATURE = 4;
const VALUE_BYTES = 8 + 64;
const TIME_S_MAX = 2n ** 63n - 1n;

/** A witness's public side. */
export class Cosignatory {
  constructor(name, publicBytes, keyId, key) {
    Object.assign(this, { name, public: publicBytes, keyId, key });
    Object.freeze(this);
  }

  static async of(name, publicBytes) {
    checkName(name);
    const keyId = (await sha256(utf8(`${name}\n`), [COSIGNATURE], publicBytes)).slice(0, 4);
    return new Cosignatory(name, publicBytes, keyId, await importKey(name, publicBytes));
  }

  /** Read `<name>+<key id, 8 hex digits>+<base64>` of type 0x04; the id must be the key's. Throws NoteError. */
  static async fromVkey(vkey) {
    const { name, keyId, key } = splitKey(vkey, "witness key");
    if (key.length !== 33 || key[0] !== COSIGNATURE) {
      throw new NoteError(`witness key of '${name}' is no Ed25519 cosignature key (type 0x04, 32 bytes)`);
    }
    const found = await Cosignatory.of(name, key.slice(1));
    if (hex(found.keyId) !== keyId) {
      throw new NoteError(`witness key of '${name}' says id ${keyId}, its key has ${hex(found.keyId)}`);
    }
    return found;
  }

  get vkey() {
    return `${this.name}+${hex(this.keyId)}+${base64(concat([COSIGNATURE], this.public))}`;
  }

  /** The Unix second at which this witness cosigned, a BigInt. Throws NoteError when the signature does not hold. */
  async timeOf(checkpointText, signature) {
    if (signature.value.length !== VALUE_BYTES) {
      throw new NoteError(`the cosignature by '${this.name}' has ${signature.value.length} bytes, not ${VALUE_BYTES}`);
    }
    const timeS = BigInt(`0x${hex(signature.value.slice(0, 8))}`);
    if (timeS > TIME_S_MAX) throw new NoteError(`the cosignature by '${this.name}' is dated after the end of time`);
    const message = utf8(`cosignature/v1\ntime ${timeS}\n${checkpointText}`);
    if (!(await crypto.subtle.verify("Ed25519", this.key, signature.value.slice(8), message))) {
      throw new NoteError(`the cosignature by '${this.name}' is wrong: the checkpoint was changed or it is forged`);
    }
    return timeS;
  }
}

/**
 * Open a checkpoint note: what the log says, and which of `witnesses` cosigned it, when. The log's signature must hold, and
 * so must every line that claims one of them; of two lines by one witness the later time counts. Throws NoteError.
 */
export async function cosigned(data, log, witnesses) {
  const checkpoint = await openCheckpoint(data, log);
  const note = parse(data);
  const times = new Map();
  for (const signature of note.signatures) {
    const witness = witnesses.find((known) => signature.by(known.name, known.keyId));
    if (!witness) continue;
    const timeS = await witness.timeOf(note.text, signature);
    const before = times.get(witness.name) ?? 0n;
    times.set(witness.name, timeS > before ? timeS : before);
  }
  return { checkpoint, times };
}
