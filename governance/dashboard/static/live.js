// Keeps an open page current: parts that changed come as server-sent events and take the place of the old ones.

import { serverNow, span } from "./clock.js";

const pulse = document.querySelector("[data-pulse]");

function swap(parts) {
  for (const [name, html] of Object.entries(parts)) {
    const element = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
    if (element && !holdsFocus(element)) {
      element.innerHTML = html;
      element.dispatchEvent(new CustomEvent("part", { bubbles: true }));
    }
  }
  tick();
}

function holdsFocus(element) {
  const active = document.activeElement;
  return active && active !== document.body && element.contains(active) && /^(INPUT|TEXTAREA|SELECT)$/.test(active.tagName);
}

function follow() {
  const source = new EventSource(location.pathname + location.search);
  let heard = Date.now();
  source.addEventListener("open", () => say("live"));
  source.addEventListener("parts", (event) => {
    heard = Date.now();
    say("live");
    swap(JSON.parse(event.data));
  });
  source.addEventListener("error", () => {
    say(source.readyState === EventSource.CLOSED ? "reload to see what is new" : "connecting");
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 10_000);
  });
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => event.persisted && follow());
}

function say(text) {
  pulse.hidden = false;
  pulse.textContent = text;
  pulse.dataset.state = text === "live" ? "live" : "away";
}

function tick() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    const seconds = Math.round((at - serverNow()) / 1000);
    if (!time.title) time.title = `${time.textContent} (${at.toLocaleString()} here)`;
    time.textContent = seconds > 0 ? `in ${span(seconds)}` : `${span(-seconds)} ago`;
  }
}

document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
tick();
setInterval(tick, 1000);
if (document.body.hasAttribute("data-live")) follow();
