// Sends a statement file to be checked and shows what was found.

const form = document.querySelector("[data-statement]");
const result = document.querySelector("[data-statement-result]");
const button = form.querySelector("button");
button.disabled = false;

function line(parent, name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  parent.append(element);
  return element;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  result.textContent = "Checking…";
  try {
    const token = document.querySelector('meta[name="csrf"]').content;
    const headers = { "x-csrf": token, accept: "application/json, text/plain", "content-type": "application/json" };
    const answer = await fetch(form.action, { method: "POST", headers, body: form.elements.file.files[0] });
    if (!answer.ok) throw new Error(await answer.text());
    show(await answer.json());
  } catch (wrong) {
    result.replaceChildren();
    line(result, "p", wrong.message).className = "notice bad";
  } finally {
    button.disabled = false;
  }
});

function show(found) {
  result.replaceChildren();
  const said = found.verified ? `It holds: ${found.about}.` : `It does NOT hold: ${found.problem}`;
  line(result, "p", said).className = `notice ${found.verified ? "good" : "bad"}`;
  const list = line(result, "ol", "");
  for (const check of found.checks) line(list, "li", check.problem ? `${check.what}: ${check.problem}` : check.what);
}
