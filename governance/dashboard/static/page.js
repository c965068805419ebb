// What scripts of several pages do to a page: build elements, say things, send notes.

/** An element with these properties and children. Text is only ever text. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Tell it to whoever looks or listens; `kind`: good, bad, warn or nothing. */
export function say(text, kind = "") {
  const place = document.querySelector("[data-said]");
  place.className = kind ? `notice ${kind}` : "note";
  place.textContent = text;
}

/** Do it, and say what went wrong if something did. */
export async function attempt(act) {
  try {
    return await act();
  } catch (error) {
    say(error.message, "bad");
    return undefined;
  }
}

export async function fetchJson(url) {
  const answer = await fetch(url, { headers: { accept: "application/json" } });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

/** Hand in a signed note; what is answered. Throws an Error with the refusal. */
export async function handIn(url, note) {
  const answer = await fetch(url, {
    method: "POST",
    headers: {
      accept: "application/json",
      "content-type": "text/plain; charset=utf-8",
      "x-csrf": document.querySelector('meta[name="csrf"]').content,
    },
    body: note,
  });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

/** Base64 hashes that lead from the log's first `old` records to its first `size`. */
export const extension = async (old, size) => (await fetchJson(`/voting/extension.json?sizes=${old}-${size}`)).path;

/** What a checked record is worth, in a sentence. `before`: records that this browser knew already. */
export function proven(index, checkpoint, before) {
  const grown = before ? `It extends the ${before} records seen here before.` : "It is the first checkpoint seen here.";
  return `Checked here: record ${index} of ${checkpoint.size}, under a checkpoint that the log signed. ${grown}`;
}
