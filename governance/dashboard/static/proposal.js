// A proposal's page: the time that is left, and the vote counted again from its records.

import { serverNow, skew, span } from "./clock.js";
import { hold, receiptOf, unable } from "./memory.js";
import { element, extension, fetchJson } from "./page.js";
import { Verifier } from "./verify/notes.js";
import { recount } from "./verify/recount.js";

const SKEW_MS = 60_000;

function tick() {
  for (const place of document.querySelectorAll("[data-until]")) {
    const seconds = Math.ceil((Number(place.dataset.until) - serverNow()) / 1000);
    const text = seconds > 0 ? `${place.dataset.says} ${span(seconds)}` : "its time has come; the journal says when it is over";
    if (place.textContent !== text) place.textContent = text;
    if (Math.abs(skew()) > SKEW_MS && !place.nextElementSibling) {
      const side = skew() > 0 ? "ahead of" : "behind";
      const warning = `This machine's clock is ${span(Math.abs(skew()) / 1000)} ${side} the server's. Times here follow the server; when a ballot counts is decided by the journal's.`;
      place.after(element("span", { className: "notice warn clock", textContent: warning }));
    }
  }
}

function offerRecount(place) {
  const button = element("button", { type: "button", className: "quiet", textContent: "Count again" });
  const result = element("div", { role: "status" });
  result.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    button.disabled = true;
    result.replaceChildren(element("p", { className: "note", textContent: "Counting…" }));
    result.replaceChildren(...(await counted(place.dataset)));
    button.disabled = false;
  });
  place.replaceChildren(button, result);
}

async function counted({ recount: url, logKey, proposal }) {
  const why = await unable();
  if (why) return [notice(why, "warn")];
  try {
    const evidence = await fetchJson(url);
    const found = await recount(evidence, await Verifier.fromVkey(logKey), evidence.now_ms);
    if (found.opening.proposal !== proposal) throw new Error("these are the records of another proposal");
    const before = await hold(found.checkpoint, logKey, extension);
    return [...(await doubts(found, evidence)), summary(found), log(found.checkpoint, before)];
  } catch (error) {
    return [notice(`It does not hold: ${error.message}`, "bad")];
  }
}

async function doubts(found, evidence) {
  const said = [];
  if (!found.agrees) said.push(notice("The outcome on record is not what the ballots come to. Tell the other members.", "bad"));
  if (evidence.left_out) said.push(notice(`${evidence.left_out} later records were left out: this is not all.`, "warn"));
  const own = await receiptOf(evidence.proposal);
  if (own && !found.ballots.some(([index]) => index === own.index)) {
    said.push(notice(`The ballot that this browser cast (record ${own.index}) is missing.`, "bad"));
  }
  return said;
}

function summary({ count, outcome, ballots, agrees }) {
  const votes = count.order
    ? count.order.tiers.map((tier, at) => `${at + 1}. ${tier.join(", ")}`).join("; ")
    : `${count.for} for, ${count.against} against, ${count.abstain} abstain, of ${count.total}`;
  const stands = outcome ? `the outcome on record, ${outcome.state}, follows` : `the vote is ${count.phase}`;
  const text = `${ballots.length} ballots, each in the journal and signed by its voter: ${votes}; ${stands}.`;
  return notice(text, agrees ? "good" : "warn");
}

function log(checkpoint, before) {
  const grown = before ? `It extends the ${before} records that this browser saw before.` : "This browser saw it for the first time.";
  return element("p", { className: "note", textContent: `All of it is in a journal of ${checkpoint.size} records. ${grown}` });
}

const notice = (text, kind) => element("p", { className: `notice ${kind}`, textContent: text });

for (const place of document.querySelectorAll("[data-recount]")) offerRecount(place);
document.addEventListener("part", tick);
tick();
setInterval(tick, 1000);
