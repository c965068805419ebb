// Voting in the browser: a key that cannot leave it, the exact text that is signed, and a receipt that is checked here.

import { serverNow } from "./clock.js";
import { ballotKey, forgetBallotKey, forgetLog, hold, keepReceipt, makeBallotKey, unable } from "./memory.js";
import { attempt, element, extension, handIn, proven, say } from "./page.js";
import { ballotKeyText, readBallot } from "./verify/ballots.js";
import { equal, hex } from "./verify/bytes.js";
import { openReceipt } from "./verify/log.js";
import { Verifier, signNote } from "./verify/notes.js";

const NAMED = ["consortium", "proposal", "rules", "electorate", "choice"];

/** The ballot page: sign what is shown, hand it in, check the receipt. */
async function offerBallot(place) {
  const why = await unable();
  const { consortium, member } = place.dataset;
  const key = why ? null : await ballotKey(consortium, member);
  if (!key || !counts(key.verifier, place.dataset)) {
    const link = element("a", { href: "/voting", textContent: key ? "have it delegated" : "make one" });
    const lacks = key ? `${member} has not delegated its ballots to this browser's key: ` : `This browser has no key of ${member}: `;
    place.replaceChildren(element("p", { className: "note" }, why || lacks, ...(why ? [] : [link, "."])));
    return;
  }
  const button = element("button", { type: "button", textContent: "Sign with this browser's key and vote" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    if (!(await attempt(() => cast(place.dataset, key)))) button.disabled = false;
  });
  place.replaceChildren(button, element("p", { className: "note" }, "The key is ", element("code", { className: "wrap", textContent: key.verifier.vkey })));
}

/** Whether ballots that this key signs are the member's, by what the server shows of its delegation. */
const counts = ({ vkey }, { delegated, delegatedUntil }) => vkey === delegated && Number(delegatedUntil) > serverNow();

async function cast(shown, key) {
  const text = document.getElementById("ballot-text").textContent;
  const ballot = readBallot({ text });
  const wrong = NAMED.find((name) => ballot[name] !== shown[name]);
  if (wrong || ballot.voter !== shown.member) throw new Error(`The text is not the ballot that was chosen: look at ${wrong ?? "voter"}.`);
  const note = await signNote(text, key.verifier, key.sign);
  say("Signed; handing it in…");
  const answer = await handIn(shown.action, note);
  const checked = await checkReceipt(answer.receipt, shown.logKey, note);
  await keepReceipt(ballot.proposal, { index: answer.receipt.index, choice: ballot.choice });
  say(`${answer.said} ${checked}`, "good");
  showReceipt(answer.receipt);
  return true;
}

/** That the record is the note, in the log this browser knows. Throws what does not hold. */
async function checkReceipt(receipt, logKey, note) {
  const why = await unable();
  if (why) throw new Error(why);
  const log = await Verifier.fromVkey(logKey);
  const { record, index, checkpoint } = await openReceipt(receipt, log);
  if (note && !equal(record.body, note)) throw new Error("The receipt is for another note. Keep yours, and tell the other members.");
  const before = await hold(checkpoint, logKey, extension);
  return proven(index, checkpoint, before);
}

function showReceipt(receipt) {
  const place = document.querySelector("[data-receipt-here]");
  place.replaceChildren(
    element("p", {}, "Receipt: ", element("a", { href: `/journal/${receipt.index}`, textContent: `journal record ${receipt.index}` })),
    element("pre", { className: "wrap", textContent: receipt.checkpoint, tabIndex: 0 }),
  );
}

/** The page of the voting key. */
async function offerKey(place) {
  const why = await unable();
  if (why) {
    place.replaceChildren(element("p", { className: "notice warn", textContent: why }));
    return;
  }
  const { consortium, member } = place.dataset;
  const key = await ballotKey(consortium, member);
  if (!key) {
    const button = element("button", { type: "button", textContent: "Make a key in this browser" });
    button.addEventListener("click", () => attempt(async () => {
      await makeBallotKey(consortium, member);
      await offerKey(place);
      say("The key is made. It counts once it is delegated.");
    }));
    place.replaceChildren(button);
    return;
  }
  place.replaceChildren(...described(key.verifier, place));
}

function described(verifier, place) {
  const { consortium, member, days, expires } = place.dataset;
  const { vkey } = verifier;
  const forget = element("button", { type: "button", className: "quiet", textContent: "Forget this key" });
  forget.addEventListener("click", () => attempt(async () => {
    await forgetBallotKey(consortium, member);
    await offerKey(place);
    say("The key is gone from this browser; take its delegation away too.");
  }));
  const shown = [element("p", {}, "Its public key: ", code(vkey, "vkey"))];
  if (counts(verifier, place.dataset)) return [...shown, element("p", { className: "notice good", textContent: `${member} has delegated its ballots to it.` }), forget];
  const nonce = hex(crypto.getRandomValues(new Uint8Array(16)));
  const text = ballotKeyText({ consortium, member, key: vkey, "expires-ms": expires, nonce });
  const file = `${member}-ballot.pub`;
  return [
    ...shown,
    element("p", { className: "notice warn", textContent: `It signs nothing yet: ${member} has to delegate its ballots to it, with its own key. Either so, with a seat:` }),
    element("pre", { className: "wrap", tabIndex: 0, textContent: `echo '${vkey}' > ${file}\nhansa member ballot-key ${file} --days ${days}\n` }),
    element("p", {}, "or by signing this text (", code("hansa key sign delegation.txt"), ") and handing in the note beside:"),
    element("pre", { id: "delegation-text", className: "exact", tabIndex: 0, textContent: text }),
    forget,
  ];
}

const code = (text, id = "") => element("code", { className: "wrap", id, textContent: text });

/** A receipt that the server showed after a form. */
const checkShown = ({ receipt, logKey }) =>
  attempt(async () => say(await checkReceipt(JSON.parse(receipt), logKey, null), "good"));

function offerToForgetLog(place) {
  const button = element("button", { type: "button", className: "quiet", textContent: "I compared the key: begin anew" });
  button.addEventListener("click", () => attempt(async () => {
    await forgetLog(place.dataset.consortium);
    button.replaceWith("Forgotten; the next checkpoint is taken as the first.");
  }));
  place.replaceChildren(button);
}

const found = (selector, act) => document.querySelectorAll(selector).forEach((place) => attempt(() => act(place)));
found("#cast", offerBallot);
found("#key", offerKey);
found("#log", offerToForgetLog);
found("[data-receipt]", (place) => checkShown(place.dataset));
