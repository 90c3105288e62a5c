// Puts what the server tells each second in its place, and says when it tells nothing. Every text comes rendered and
// escaped from the server: nothing is computed here but how old the figures are.
"use strict";

const SILENT_AFTER = 3000; // milliseconds without a word, when one comes each second
const RETRY_AFTER = 2000; // after an answer that was no stream, which browsers don't retry themselves
const COLOURS = { good: "#17a05a", warn: "#d99000", bad: "#d92d20", idle: "#808897" };

const byId = (id) => document.getElementById(id);
const places = [...document.querySelectorAll("[data-html]")];
const toned = [...document.querySelectorAll("[data-tone-of]")];
const shownNow = new Map();
let lastAt = Date.now();
let isOver = false;
let isPaused = false;
let saidLast = null;

function put(element, key, html) {
  // What is the same is left alone, so that a selection and a reader's place in it stay.
  if (html === undefined || shownNow.get(element) === html) return;
  element.innerHTML = html;
  shownNow.set(element, html);
}

function show(view) {
  lastAt = Date.now();
  if (isPaused) return;
  for (const element of places) put(element, element.dataset.html, view.html[element.dataset.html]);
  for (const element of toned) element.dataset.tone = view.tone[element.dataset.toneOf];
  // The title's text comes escaped as all else does.
  document.title = new DOMParser().parseFromString(view.html.title, "text/html").body.textContent;
  colour(view.tone.state);
  announce();
}

function colour(tone) {
  const drawn = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="4" fill="${COLOURS[tone]}"/></svg>`;
  const href = `data:image/svg+xml,${encodeURIComponent(drawn)}`;
  const icon = document.querySelector("link[rel=icon]");
  if (icon.href !== href) icon.href = href;
}

// Screen readers hear of a new state or reason, not of every figure: reasons that only count on are the same.
function announce() {
  const state = document.querySelector(".pill").textContent;
  const reasons = [...document.querySelectorAll(".reasons li")].map((item) => item.textContent);
  say([state, ...reasons].join(". "));
}

function say(text) {
  const kind = text.replace(/\d+/g, "");
  if (kind === saidLast) return;
  saidLast = kind;
  byId("said").textContent = text;
}

function watch() {
  const away = byId("away");
  const silent = Date.now() - lastAt;
  const isAway = isOver || silent > SILENT_AFTER;
  document.body.classList.toggle("is-away", isAway);
  if (!isAway) {
    away.hidden = true;
    return;
  }
  const asOf = document.querySelector("[data-html=at]").textContent;
  away.dataset.tone = isOver ? "idle" : "bad";
  away.textContent = isOver
    ? `The pipeline has ended; these are its last figures, as of ${asOf} UTC. The page goes on when it runs again.`
    : `No word from the daemon for ${Math.round(silent / 1000)} s; these figures are as of ${asOf} UTC. Trying again by itself.`;
  away.hidden = false;
  document.title = `${isOver ? "Ended" : "No answer"} · ${document.querySelector("h1").textContent} · streambatch`;
  colour(isOver ? "idle" : "bad");
  say(isOver ? "The pipeline has ended." : "No word from the daemon.");
}

function follow() {
  const events = new EventSource("/events");
  events.addEventListener("view", (event) => {
    isOver = false;
    show(JSON.parse(event.data));
    watch();
  });
  events.addEventListener("end", (event) => {
    show(JSON.parse(event.data));
    isOver = true;
    watch();
  });
  events.addEventListener("error", () => {
    if (events.readyState !== EventSource.CLOSED) return; // it connects again by itself
    events.close();
    setTimeout(follow, RETRY_AFTER);
  });
}

byId("pause").hidden = false;
byId("pause").addEventListener("click", (event) => {
  isPaused = !isPaused;
  event.currentTarget.setAttribute("aria-pressed", String(isPaused));
});
setInterval(watch, 1000);
follow();
