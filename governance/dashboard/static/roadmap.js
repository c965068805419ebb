// Roadmap ballots: buttons that move a candidate, and what votes cost while they are given. Forms work without them.

import { element } from "./page.js";

/** Ranked: the order of the list is the ballot, and buttons change it. */
function order(form) {
  const list = form.querySelector("ol");
  const said = form.querySelector("[data-moved]");
  const places = () => [...list.children].map((row) => row.querySelector("input"));
  const number = () => {
    let place = 0;
    for (const input of places()) {
      const out = input.closest("li").dataset.out === "yes";
      if (!out) place += 1;
      input.value = out ? "" : String(place);
    }
  };
  const name = (row) => row.querySelector("label").textContent;
  const tell = (row) => {
    const { value } = row.querySelector("input");
    said.textContent = value ? `${name(row)} is at place ${value}` : `${name(row)} is left out`;
  };
  const act = (row, change) => {
    change();
    number();
    tell(row);
  };
  for (const row of list.children) {
    const up = button("↑", `Move ${name(row)} up`);
    const down = button("↓", `Move ${name(row)} down`);
    const out = button("leave out", `Leave out ${name(row)}`);
    up.addEventListener("click", () => {
      act(row, () => row.previousElementSibling?.before(row));
      up.focus();
    });
    down.addEventListener("click", () => {
      act(row, () => row.nextElementSibling?.after(row));
      down.focus();
    });
    out.addEventListener("click", () => {
      const left = row.dataset.out === "yes";
      act(row, () => (row.dataset.out = left ? "no" : "yes"));
      out.textContent = left ? "leave out" : "put back";
      out.setAttribute("aria-label", `${left ? "Leave out" : "Put back"} ${name(row)}`);
    });
    row.querySelector("input").readOnly = true;
    row.append(up, down, out);
  }
  number();
}

function button(text, label) {
  const made = element("button", { type: "button", className: "quiet", textContent: text });
  made.setAttribute("aria-label", label);
  return made;
}

/** Quadratic: what the votes cost, while they are given. */
function cost(form) {
  const said = form.querySelector("[data-cost]");
  const send = form.querySelector("button:not([type])");
  const credits = Number(form.dataset.credits);
  const tell = () => {
    const votes = [...form.querySelectorAll("input")].map((input) => Number(input.value) || 0);
    const spent = votes.reduce((sum, n) => sum + n * n, 0);
    said.textContent = `${spent} of ${credits} credits are spent; ${spent > credits ? `${spent - credits} too many` : `${credits - spent} are left`}.`;
    said.className = spent > credits ? "notice warn" : "note";
    send.disabled = spent > credits || spent === 0;
  };
  form.addEventListener("input", tell);
  tell();
}

for (const form of document.querySelectorAll("form.roadmap")) ("ranked" in form.dataset ? order : cost)(form);
