// A record's page: that it is in the journal, checked here, and that the journal is the one this browser knows.

import { hold, unable } from "./memory.js";
import { extension, fetchJson, proven } from "./page.js";
import { openReceipt } from "./verify/log.js";
import { Verifier } from "./verify/notes.js";

async function checked(url) {
  const proof = await fetchJson(url);
  const { index, checkpoint } = await openReceipt(proof, await Verifier.fromVkey(proof.log_key));
  const before = await hold(checkpoint, proof.log_key, extension);
  return proven(index, checkpoint, before);
}

for (const place of document.querySelectorAll("[data-proof]")) {
  const said = place.querySelector("[data-proof-result]");
  const why = await unable();
  if (why) {
    said.textContent = why;
    said.className = "notice warn";
    continue;
  }
  try {
    said.textContent = await checked(place.dataset.proof);
    said.className = "notice good";
  } catch (error) {
    said.textContent = `It does not hold: ${error.message}`;
    said.className = "notice bad";
  }
}
