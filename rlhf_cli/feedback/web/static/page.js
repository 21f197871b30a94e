// The only script of the page: log-in, judging by keyboard, touch or mouse, and decisions about disagreements.
"use strict";

const MOMENT = 1500; // milliseconds between a complete answer and its submission, in which undo is one key
const REST_AFTER = 50 * 60_000; // milliseconds of work
const BREAK = 5 * 60_000; // milliseconds without work that count as a rest
const RETRY = 2000; // milliseconds
const FLAGS = { unsafe: ["u", "Unsafe"], false: ["f", "False"], private: ["p", "Private data"], language: ["n", "Not my language"], broken: ["b", "Broken"] };
const STRENGTHS = { 1: "slightly better", 2: "better", 3: "much better" };

const find = (selector, root = document) => root.querySelector(selector);
const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];
const page = document.body.dataset;
const isDeciding = document.body.classList.contains("decide"); // an expert settles a disagreement

/** Prefix of what the browser keeps. People who share a browser do not share drafts, settings or what they have read. */
const STORED = `rlhf:${page.project}:${page.annotator}:`;

function stored(storage, name, value) {
  const key = `${STORED}${name}`;
  if (value === undefined) return JSON.parse(storage.getItem(key) ?? "null");
  if (value === null) storage.removeItem(key);
  else storage.setItem(key, JSON.stringify(value));
  return value;
}

function announce(text) {
  find("#announcement").textContent = text;
}

async function post(url, body = {}) {
  const headers = { "content-type": "application/json", "x-csrf-token": page.csrf };
  const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(body) });
  const isJson = response.headers.get("content-type")?.startsWith("application/json");
  return { status: response.status, body: isJson ? await response.json() : { message: await response.text() } };
}

function ordinal(number) {
  return number + (["th", "st", "nd", "rd"][number % 100 > 10 && number % 100 < 14 ? 0 : number % 10] ?? "th");
}

/** Return the key of an event independent of the keyboard's layout: digits and letters as on a US keyboard. */
function keyOf(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return "";
  if (event.key === "=" || event.key === "?") return event.key;
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  if (digit) return digit[1];
  if (/^[a-z]$/i.test(event.key)) return event.key.toLowerCase();
  const letter = /^Key([A-Z])$/.exec(event.code);
  return letter ? letter[1].toLowerCase() : event.key;
}

const isText = (target) => target.matches("textarea, input:not([type=radio]):not([type=checkbox])");

// ---------------------------------------------------------------------------------------------- one item

/** One item on the page: what has been answered so far, and how it is shown. */
class Item {
  constructor(root) {
    this.root = root;
    const data = root.dataset;
    Object.assign(this, { id: data.id, url: data.url, task: data.task, count: Number(data.count), guideline: data.guideline });
    this.criteria = JSON.parse(data.criteria);
    this.saved = data.saved ? JSON.parse(data.saved) : null;
    this.asksWhy = "askWhy" in data;
    this.key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    this.slotCount = this.task === "best-worst" ? 2 : this.count;
    this.history = [];
    this.tieNext = false;
    this.phase = "open"; // open → sending → outcome
    this.visibleTime = 0;
    this.visibleSince = document.hidden ? null : performance.now();
    this.state = this.initialState();
    this.mustConfirm = this.criteria.length > 0 || this.saved !== null;
  }

  initialState() {
    const draft = stored(localStorage, `draft:${this.url}`);
    if (draft) return draft;
    const state = { slots: Array.from({ length: this.slotCount }, () => []), last: null, strength: null, allBad: false, criteria: {}, flags: {}, rationale: "" };
    const saved = this.saved;
    if (!saved) return state;
    Object.assign(state, { strength: saved.strength, allBad: saved.all_bad, criteria: saved.criteria, flags: saved.flags, rationale: saved.rationale });
    if (this.task === "best-worst") [state.slots[0], state.slots[1]] = [saved.tiers.at(0) ?? [], saved.tiers.at(-1) ?? []];
    else saved.tiers.forEach((tier, index) => { state.slots[index] = tier; });
    return state;
  }

  // The answer

  slotOf(position) {
    return this.state.slots.findIndex((slot) => slot.includes(position));
  }

  get placed() {
    return this.state.slots.flat().length;
  }

  get isComplete() {
    if (this.task === "pair") return this.state.strength !== null;
    if (this.state.allBad && this.placed === 0) return true;
    return this.task === "best-worst" ? this.state.slots.every((slot) => slot.length > 0) : this.placed === this.count;
  }

  get needsWhy() {
    return this.asksWhy || Math.abs(this.state.strength ?? 0) === 3;
  }

  get tiers() {
    if (this.task === "pair") return this.state.strength === 0 ? [[1, 2]] : this.state.strength < 0 ? [[1], [2]] : [[2], [1]];
    if (this.placed === 0) return []; // all are bad, which compares none of them
    if (this.task === "rank") return this.state.slots.filter((slot) => slot.length > 0);
    const [best, worst] = this.state.slots;
    const all = Array.from({ length: this.count }, (_, index) => index + 1);
    return [best, all.filter((position) => this.slotOf(position) < 0), worst].filter((tier) => tier.length > 0);
  }

  get answer() {
    const { strength, allBad, criteria, flags, rationale } = this.state;
    return { key: this.key, tiers: this.tiers, strength, all_bad: allBad, criteria, flags, rationale, seconds: this.seconds };
  }

  get seconds() {
    const running = this.visibleSince === null ? 0 : performance.now() - this.visibleSince;
    return (this.visibleTime + running) / 1000;
  }

  setVisible(visible) {
    if (!visible && this.visibleSince !== null) {
      this.visibleTime += performance.now() - this.visibleSince;
      this.visibleSince = null;
    } else if (visible && this.visibleSince === null) this.visibleSince = performance.now();
  }

  // What annotators do. Each step can be undone.

  change(step) {
    if (this.phase !== "open") return;
    this.history.push(JSON.stringify(this.state));
    step(this.state);
    this.changed();
  }

  choose(position) {
    if (position > this.count) return;
    if (this.task === "pair") this.strengthen(position);
    else this.change((state) => {
      const slot = this.slotOf(position);
      if (slot >= 0) this.take(position);
      else this.put(position, this.nextSlot());
      this.tieNext = false;
      state.last = slot >= 0 ? null : position;
    });
  }

  nextSlot() {
    const { slots, last } = this.state;
    if (this.tieNext && last !== null) return this.slotOf(last);
    const free = slots.findIndex((slot) => slot.length === 0);
    return free < 0 ? slots.length - 1 : free;
  }

  /** Put a completion into a place. The places of `best-worst` hold one each. */
  put(position, slot) {
    this.take(position);
    const { slots } = this.state;
    slots[slot] = this.task === "best-worst" ? [position] : [...slots[slot], position].sort((a, b) => a - b);
  }

  take(position) {
    this.state.slots = this.state.slots.map((slot) => slot.filter((other) => other !== position));
  }

  strengthen(position) {
    if (position === 0) this.setStrength(0);
    else {
      const sign = position === 1 ? -1 : 1;
      const strength = this.state.strength ?? 0;
      this.setStrength(Math.sign(strength) === sign ? sign * (Math.abs(strength) % 3 + 1) : sign);
    }
  }

  setStrength(strength) {
    this.change((state) => { state.strength = strength; });
  }

  toggleAllBad() {
    this.change((state) => {
      state.allBad = !state.allBad;
      if (this.task === "pair" && (state.strength ?? 0) === 0) state.strength = state.allBad ? 0 : null;
    });
  }

  toggleTie() {
    if (this.task !== "rank" || this.placed === 0 || this.isComplete) return;
    this.tieNext = !this.tieNext;
    this.changed();
  }

  toggleFlag(position, flag) {
    this.change((state) => {
      const flags = state.flags[position] ?? [];
      state.flags[position] = flags.includes(flag) ? flags.filter((other) => other !== flag) : [...flags, flag];
    });
  }

  rate(position, criterion, value) {
    this.change((state) => { (state.criteria[position] ??= {})[criterion] = value; });
  }

  undo() {
    const undone = this.history.pop();
    if (undone === undefined) return false;
    this.tieNext = false;
    this.state = { ...JSON.parse(undone), rationale: this.state.rationale };
    this.changed();
    return true;
  }

  /** Take over the tiers of someone's judgment. */
  adopt(tiers) {
    this.change((state) => { state.slots = state.slots.map((_, index) => tiers[index] ?? []); });
  }

  // What the page shows

  changed() {
    this.stopTimer();
    stored(localStorage, `draft:${this.url}`, this.state);
    this.render();
    this.proceed();
  }

  /** Ask for what is missing, or submit after a moment. An open dialog is closed first. */
  proceed() {
    if (this.phase !== "open" || find("dialog[open]")) return;
    if (!this.isComplete) announce(this.question());
    else if (this.needsWhy && this.state.rationale === "") this.openWhy();
    else if (find("#why", this.root).hidden) this.startTimer();
  }

  startTimer() {
    const waits = this.mustConfirm || stored(localStorage, "wait") === true;
    this.setStatus(waits ? "Complete. Submit it, or change it." : "Complete. It is submitted in a moment.");
    announce(`${this.summary()}. ${waits ? "Press Enter to submit" : "Backspace undoes"}`);
    if (!waits) this.timer = setTimeout(() => submit(), MOMENT);
    else if (this.criteria.length > 0) this.focusMissingRating();
  }

  stopTimer() {
    clearTimeout(this.timer);
    this.timer = undefined;
  }

  question() {
    if (this.task === "pair") return "Which is better?";
    if (this.tieNext) return `Which is as good as ${this.state.last}?`;
    if (this.task === "best-worst") return this.state.slots[0].length ? "Which is worst?" : "Which is best?";
    return this.placed === 0 ? "Which is best?" : "Which comes next?";
  }

  summary() {
    if (this.task === "pair") return this.pairText(this.state.strength);
    if (this.placed === 0) return "All are bad";
    return this.tiers.map((tier) => tier.join(" = ")).join(" › ");
  }

  pairText(strength) {
    return strength === 0 ? "Equally good" : `${strength < 0 ? 1 : 2} is ${STRENGTHS[Math.abs(strength)]}`;
  }

  rankText(position) {
    if (this.task === "pair") {
      const strength = this.state.strength;
      if (strength === null) return "";
      if (strength === 0) return "Equal";
      return strength < 0 === (position === 1) ? STRENGTHS[Math.abs(strength)].replace(/^./, (letter) => letter.toUpperCase()) : "";
    }
    const slot = this.slotOf(position);
    if (slot < 0) return "";
    if (this.task === "best-worst") return slot === 0 ? "Best" : "Worst";
    const rank = this.state.slots.slice(0, slot).filter((other) => other.length > 0).length + 1;
    return `${ordinal(rank)}${this.state.slots[slot].length > 1 ? ", tied" : ""}`;
  }

  render() {
    for (const answer of findAll(".answer", this.root)) this.renderAnswer(answer, Number(answer.dataset.position));
    for (const slot of findAll(".slot", this.root)) {
      const chips = this.state.slots[Number(slot.dataset.slot)].map((position) => {
        const chip = document.createElement("span");
        Object.assign(chip, { className: "chip", textContent: position });
        chip.dataset.chip = position;
        return chip;
      });
      slot.replaceChildren(find(".name", slot), ...chips);
      slot.classList.toggle("filled", chips.length > 0);
    }
    for (const step of findAll("[data-strength]", this.root)) step.setAttribute("aria-pressed", String(Number(step.dataset.strength) === this.state.strength && this.state.strength !== null));
    for (const radio of findAll(".rating input", this.root)) {
      const { position, criterion } = radio.closest(".rating").dataset;
      radio.checked = this.state.criteria[position]?.[criterion] === Number(radio.value);
    }
    find("[data-action=bad]", this.root)?.setAttribute("aria-pressed", String(this.state.allBad));
    find("[data-action=tie]", this.root)?.setAttribute("aria-pressed", String(this.tieNext));
    find("[data-action=flag]", this.root)?.classList.toggle("set", this.flagsOf(0).length > 0);
    find("[data-action=why]", this.root).classList.toggle("set", this.state.rationale !== "");
    const why = find("#rationale", this.root);
    if (why.value !== this.state.rationale) why.value = this.state.rationale;
    if (!this.isComplete) this.setStatus(this.question());
  }

  renderAnswer(answer, position) {
    const rank = this.rankText(position);
    const slot = this.task === "pair" ? -1 : this.slotOf(position);
    const isBest = this.task === "pair" ? rank !== "" && this.state.strength !== 0 : slot === 0;
    const place = find(".place", answer);
    place.setAttribute("aria-pressed", String(rank !== ""));
    const text = find(".rank", answer);
    text.textContent = rank || "not placed";
    text.classList.toggle("visually-hidden", rank === "");
    answer.classList.toggle("best", isBest);
    answer.classList.toggle("chosen", rank !== "");
    find(".marks", answer).textContent = this.flagsOf(position).map((flag) => FLAGS[flag][1]).join(", ");
  }

  flagsOf(position) {
    return this.state.flags[position] ?? [];
  }

  setStatus(text, kind = "") {
    const status = find("#status", this.root);
    status.textContent = text;
    status.dataset.kind = kind;
  }

  openWhy() {
    this.stopTimer();
    this.mustConfirm = true;
    find("#why", this.root).hidden = false;
    find("#rationale", this.root).focus();
    if (this.isComplete) this.setStatus("Say why, then submit.");
  }

  closeWhy() {
    find("#why", this.root).hidden = true;
    find("#item-heading").focus({ preventScroll: true });
    if (this.isComplete) this.startTimer();
  }

  missingRatings() {
    return findAll(".rating", this.root).filter((rating) => !this.state.criteria[rating.dataset.position]?.[rating.dataset.criterion]);
  }

  focusMissingRating() {
    const [missing] = this.missingRatings();
    if (missing) find("input", missing).focus();
    else find("#item-heading").focus({ preventScroll: true });
    return missing !== undefined;
  }
}

// ---------------------------------------------------------------------------------------------- from item to item

let item = null;
let nextFragment = null;

/** Send a request until it is answered; the same key makes a repetition harmless. */
async function persist(url, body) {
  for (;;) {
    try {
      const reply = await post(url, body);
      if (reply.status < 500) return reply;
    } catch { /* no connection */ }
    item?.setStatus("No connection. Your answer is kept, and sent again in a moment.", "problem");
    announce("No connection. Trying again.");
    await new Promise((resolve) => { setTimeout(resolve, RETRY); });
  }
}

async function submit() {
  if (!item || item.phase !== "open") return;
  item.stopTimer();
  if (!item.isComplete) return announce(item.question());
  const missing = item.missingRatings().length;
  if (missing > 0 && !item.warnedOfMissing) {
    item.warnedOfMissing = true;
    item.focusMissingRating();
    return item.setStatus(`${missing} ratings are missing. Submit again to leave them out.`);
  }
  await send(item.answer);
}

async function skip(reason) {
  if (!item || item.phase !== "open") return;
  await send({ ...item.answer, tiers: [], strength: null, skip_reason: reason });
}

async function send(answer) {
  const sent = item;
  sent.stopTimer();
  sent.phase = "sending";
  const { status, body } = await persist(sent.url, answer);
  if (status === 200 && body.location) {
    stored(localStorage, `draft:${sent.url}`, null);
    location.assign(body.location);
  } else if (status === 200) {
    stored(localStorage, `draft:${sent.url}`, null);
    const done = (stored(sessionStorage, "done") ?? []).filter((id) => id !== body.judgment);
    stored(sessionStorage, "done", [...done, body.judgment].slice(-50));
    find("#progress").innerHTML = body.progress;
    if (body.guideline !== sent.guideline) nextFragment = null; // what was loaded before the change names the old version
    if (body.outcome) showOutcome(sent, body.outcome);
    else await showNext(body.notice);
  } else if (status === 401) {
    sent.phase = "open";
    sent.setStatus("You are logged out. Your answer is kept: log in with a new invite link.", "problem");
  } else if (status === 409) showExpired(sent, body.message);
  else if (status === 404) await showNext("That item is no longer yours.");
  else {
    sent.phase = "open";
    sent.setStatus(body.message, "problem");
  }
}

function showOutcome(shown, html) {
  const outcome = find("#outcome", shown.root);
  outcome.innerHTML = html;
  outcome.hidden = false;
  shown.phase = shown.root.dataset.phase = "outcome";
  find("#why", shown.root).hidden = true;
  find("h2", outcome).focus();
}

/** Tell that the item was given to others meanwhile. What was written stays on the page. */
function showExpired(shown, message) {
  showOutcome(shown, '<h2 tabindex="-1">The time for this item is over</h2><p></p><textarea id="kept" rows="3" readonly dir="auto" aria-label="What you wrote"></textarea><button type="button" class="primary" data-action="continue">Continue <kbd>↵</kbd></button>');
  const kept = find("#kept", shown.root);
  kept.value = shown.state.rationale;
  kept.hidden = kept.value === "";
  find("#outcome p", shown.root).textContent = kept.hidden ? message : `${message} What you wrote is kept here, so that you can copy it.`;
}

async function fetchNext(shownId = "") {
  const response = await fetch(`/items/next?after=${shownId}`);
  return response.ok ? response.text() : null;
}

async function showNext(notice = "") {
  let html = await nextFragment?.catch(() => null);
  nextFragment = null;
  if (!html?.includes("data-id=")) html = await fetchNext().catch(() => null);
  if (html === null) return location.reload();
  show(html, notice);
}

function show(html, notice = "") {
  find("#main").innerHTML = html;
  startItem();
  window.scrollTo(0, 0);
  find("#item-heading").focus({ preventScroll: true });
  if (notice) {
    item?.setStatus(notice, "notice");
    announce(notice);
  }
}

function startItem() {
  const root = find(".item");
  item = root ? new Item(root) : null;
  if (!item) return;
  item.render();
  if (item.isComplete && !item.saved) item.mustConfirm = true; // a draft of an earlier visit is not submitted unseen
  if (item.isComplete) item.proceed();
  else announce(`${find("#item-heading").textContent}. ${item.question()}`);
  if (isDeciding) return;
  nextFragment = fetchNext(item.id);
  nextFragment.catch(() => null);
  suggestRest();
  showGuidelineIfNew();
}

async function undo() {
  if (item?.phase === "outcome" || item?.phase === "sending") return;
  if (item?.undo()) return;
  const done = stored(sessionStorage, "done") ?? [];
  const judgment = isDeciding ? undefined : done.pop();
  if (judgment === undefined) return announce("Nothing to undo");
  const { status, body } = await post(`/judgments/${judgment}/reopen`);
  stored(sessionStorage, "done", done);
  if (status === 200) show(body.html);
  else announce("That item cannot be opened again");
}

// ---------------------------------------------------------------------------------------------- guideline and rest

function suggestRest() {
  const now = Date.now();
  const work = stored(localStorage, "work");
  const started = !work || now - work.latest > BREAK ? now : work.started;
  stored(localStorage, "work", { started, latest: now });
  if (now - started < REST_AFTER) return;
  stored(localStorage, "work", null);
  open("#rest");
}

async function showGuidelineIfNew() {
  const seen = stored(localStorage, "guideline");
  if (item.guideline && item.guideline !== seen) await showGuideline(seen ?? "");
}

async function showGuideline(since = "") {
  const response = await fetch(`/guideline?since=${since}`);
  if (!response.ok || !item) return;
  find("#guideline-text").innerHTML = await response.text();
  stored(localStorage, "guideline", item.guideline);
  open("#guideline");
}

// ---------------------------------------------------------------------------------------------- dialogs

function open(selector) {
  item?.stopTimer();
  item?.setVisible(false);
  const dialog = find(selector);
  if (!dialog.open) dialog.showModal();
}

function setUpDialogs() {
  for (const dialog of findAll("dialog")) {
    dialog.addEventListener("close", () => {
      item?.setVisible(!document.hidden);
      item?.proceed();
    });
    dialog.addEventListener("click", (event) => { if (event.target.closest("[data-close]")) dialog.close(); });
  }
  for (const setting of findAll("[data-setting]")) {
    setting.checked = stored(localStorage, setting.dataset.setting) === true;
    setting.addEventListener("change", () => stored(localStorage, setting.dataset.setting, setting.checked));
  }
  find("#skip-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const other = find("#skip-other").value.trim();
    if (other) closeAndSkip(other);
  });
  find("#skip .choices").addEventListener("click", (event) => {
    const choice = event.target.closest("button");
    if (choice) closeAndSkip(choice.value);
  });
}

function closeAndSkip(reason) {
  find("#skip-other").value = "";
  const skipped = item;
  find("#skip").close();
  skipped.stopTimer();
  skip(reason);
}

function openKeys() {
  for (const part of findAll("#keys [data-task]")) part.hidden = part.dataset.task !== item?.task;
  for (const part of findAll("#keys [data-criteria]")) part.hidden = !item?.criteria.length;
  open("#keys");
}

let flagTarget = 0;

function openFlags() {
  flagTarget = item.state.last ?? 0;
  renderFlags();
  open("#flag");
}

function renderFlags() {
  const positions = [0, ...Array.from({ length: item.count }, (_, index) => index + 1)];
  const label = (position) => (position === 0 ? "Item" : String(position));
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  head.append(document.createElement("td"));
  for (const position of positions) {
    const cell = document.createElement("th");
    Object.assign(cell, { scope: "col", textContent: label(position) });
    cell.classList.toggle("target", position === flagTarget);
    head.append(cell);
  }
  const body = table.createTBody();
  for (const [flag, [letter, name]] of Object.entries(FLAGS)) {
    const row = body.insertRow();
    const heading = document.createElement("th");
    heading.scope = "row";
    const key = Object.assign(document.createElement("kbd"), { textContent: letter });
    heading.append(key, ` ${name}`);
    row.append(heading);
    for (const position of positions) {
      const cell = row.insertCell();
      cell.classList.toggle("target", position === flagTarget);
      const box = document.createElement("input");
      Object.assign(box, { type: "checkbox", checked: item.flagsOf(position).includes(flag) });
      box.setAttribute("aria-label", `${name}: ${position === 0 ? "whole item" : `answer ${position}`}`);
      box.addEventListener("change", () => item.toggleFlag(position, flag));
      const target = document.createElement("label");
      target.append(box);
      cell.append(target);
    }
  }
  find("#flag-table").replaceChildren(table);
}

function flagByKey(key) {
  const flag = Object.keys(FLAGS).find((name) => FLAGS[name][0] === key);
  if (flag) item.toggleFlag(flagTarget, flag);
  else if (/^\d$/.test(key) && Number(key) <= item.count) flagTarget = Number(key);
  else return false;
  item.stopTimer();
  renderFlags();
  announce(`${flagTarget === 0 ? "Whole item" : `Answer ${flagTarget}`}: ${item.flagsOf(flagTarget).map((name) => FLAGS[name][1]).join(", ") || "no flag"}`);
  return true;
}

// ---------------------------------------------------------------------------------------------- keyboard, touch, drag

const ACTIONS = {
  undo,
  submit,
  keys: openKeys,
  guideline: () => showGuideline(),
  continue: () => showNext(),
  bad: () => item?.toggleAllBad(),
  tie: () => item?.toggleTie(),
  flag: () => item?.phase === "open" && openFlags(),
  skip: () => item?.phase === "open" && open("#skip"),
  why: () => item?.phase === "open" && (find("#why").hidden ? item.openWhy() : item.closeWhy()),
  logout: async () => {
    await post("/logout");
    for (const key of Object.keys(localStorage).filter((name) => name.startsWith(`${STORED}draft:`))) localStorage.removeItem(key);
    stored(sessionStorage, "done", null);
    location.assign("/");
  },
};
const KEYS = { b: "bad", s: "skip", f: "flag", r: "why", g: "guideline", "=": "tie", "?": "keys", Backspace: "undo", Enter: "submit" };

const DECIDING_KEYS = ["r", "=", "Backspace", "Enter"];

function onKey(event) {
  const key = keyOf(event);
  const dialog = find("dialog[open]");
  if (dialog) return onDialogKey(event, dialog, key);
  if (isText(event.target)) return onTextKey(event, key);
  const isControl = event.target.matches("button, a, summary, input");
  if (isControl && (event.key === "Enter" || event.key === " ") && !event.target.matches("[type=radio]")) return;
  if (item?.phase === "outcome" && key === "Enter") return act(event, () => showNext());
  if (stored(localStorage, "quiet") === true && !["Enter", "ArrowUp", "ArrowDown"].includes(key)) return;
  const rating = event.target.closest(".rating");
  if (rating && /^[1-5]$/.test(key)) return act(event, () => rateByKey(rating, Number(key)));
  if (/^\d$/.test(key) && item?.phase === "open") return act(event, () => (Number(key) > 0 || item.task === "pair") && item.choose(Number(key)));
  const adopted = isDeciding && find(`[data-adopt][data-key="${CSS.escape(key)}"]`);
  if (adopted) return act(event, () => adopted.click());
  if (KEYS[key] && (!isDeciding || DECIDING_KEYS.includes(key)) && (item || key === "Backspace")) return act(event, ACTIONS[KEYS[key]]);
  scrollByKey(event, key);
}

function act(event, action) {
  event.preventDefault();
  if (!event.repeat) action();
}

function onDialogKey(event, dialog, key) {
  if (dialog.id === "flag" && flagByKey(key)) event.preventDefault();
  else if (dialog.id === "skip" && !isText(event.target) && /^[1-9]$/.test(key)) {
    event.preventDefault();
    findAll(".choices button", dialog)[Number(key) - 1]?.click();
  } else if (key === "Enter" && dialog.id !== "skip" && !event.target.matches("button")) act(event, () => dialog.close());
}

function onTextKey(event, key) {
  if (event.target.id !== "rationale") return;
  if (key === "Escape") act(event, () => item.closeWhy());
  else if (key === "Enter" && !event.shiftKey && !event.isComposing) act(event, item.isComplete ? submit : () => item.closeWhy());
}

function rateByKey(rating, value) {
  item.rate(rating.dataset.position, rating.dataset.criterion, value);
  if (!item.missingRatings().length) item.setStatus("Complete. Submit it, or change it.");
}

function scrollByKey(event, key) {
  const boxes = findAll(".body").filter((box) => box.scrollHeight > box.clientHeight + 1);
  const steps = { ArrowDown: 48, ArrowUp: -48, PageDown: 0.9, PageUp: -0.9, " ": 0.9 };
  const longest = boxes.sort((a, b) => b.scrollHeight - a.scrollHeight)[0];
  if (!longest || !(key in steps) || event.target.matches("input, summary, pre, .prompt")) return;
  event.preventDefault();
  const step = steps[key];
  longest.scrollTop += Math.abs(step) < 1 ? step * longest.clientHeight : step;
}

function onClick(event) {
  const button = event.target.closest("button");
  if (!button) return;
  const { action, adopt, choose, strength } = button.dataset;
  const endsDrag = dragged && event.detail > 0;
  dragged = false;
  if (choose && !endsDrag) item?.choose(Number(choose));
  if (strength) item?.setStrength(Number(strength));
  if (adopt) item?.adopt(JSON.parse(adopt));
  if (action) ACTIONS[action]?.();
  if (event.detail > 0 && (choose || strength || adopt || action === "bad" || action === "tie")) button.blur(); // so that Enter submits
}

/** Scroll the boxes together, so that the same lines stand side by side. */
function onScroll(event) {
  if (!event.target.matches?.(".body")) return;
  for (const box of findAll(".body")) if (box !== event.target && box.scrollTop !== event.target.scrollTop) box.scrollTop = event.target.scrollTop;
}

let dragged = false;

/** Drag a digit onto a place, onto another one, or away from its place. */
function onPointerDown(event) {
  const chip = event.target.closest("[data-chip]");
  dragged = false;
  if (!chip || item?.phase !== "open" || item.task === "pair" || event.button !== 0) return;
  const position = Number(chip.dataset.chip);
  let ghost = null;
  const move = (moved) => {
    if (!ghost && Math.hypot(moved.clientX - event.clientX, moved.clientY - event.clientY) < 6) return;
    if (!ghost) {
      item.stopTimer();
      dragged = true;
      ghost = Object.assign(document.createElement("span"), { className: "chip ghost", textContent: position });
      document.body.append(ghost);
    }
    ghost.style.translate = `${moved.clientX}px ${moved.clientY}px`;
    for (const slot of findAll(".slot")) slot.classList.toggle("target", slot === slotAt(moved));
  };
  const end = (moved) => {
    chip.removeEventListener("pointermove", move);
    ghost?.remove();
    for (const slot of findAll(".slot")) slot.classList.remove("target");
    if (!ghost) return;
    const slot = moved.type === "pointerup" ? slotAt(moved) : null;
    item.change((state) => {
      if (slot) item.put(position, Number(slot.dataset.slot));
      else item.take(position);
      state.last = slot ? position : null;
    });
  };
  chip.setPointerCapture(event.pointerId);
  chip.addEventListener("pointermove", move);
  chip.addEventListener("pointerup", end, { once: true });
  chip.addEventListener("pointercancel", end, { once: true });
  if (!chip.closest("button")) event.preventDefault();
}

const slotAt = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest(".slot") ?? null;

function setUpAnnotation() {
  if (!isDeciding) setUpDialogs();
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", onClick);
  document.addEventListener("scroll", onScroll, { capture: true, passive: true });
  document.addEventListener("pointerdown", onPointerDown);
  document.addEventListener("visibilitychange", () => item?.setVisible(!document.hidden));
  document.addEventListener("input", (event) => {
    if (event.target.id !== "rationale" || !item) return;
    item.state.rationale = event.target.value;
    stored(localStorage, `draft:${item.url}`, item.state);
  });
  document.addEventListener("change", (event) => {
    const rating = event.target.closest(".rating");
    if (rating) item.rate(rating.dataset.position, rating.dataset.criterion, Number(event.target.value));
  });
  startItem();
}

// ---------------------------------------------------------------------------------------------- log-in

function setUpLogin() {
  const token = find("#token");
  const error = find("#login-error");
  const takeToken = () => {
    if (location.hash.length < 2) return;
    token.value = decodeURIComponent(location.hash.slice(1));
    history.replaceState(null, "", location.pathname); // the code does not stay in the address bar
    find("button", find("#login")).focus();
  };
  takeToken();
  addEventListener("hashchange", takeToken); // a link that is opened while this page is shown
  find("#login").addEventListener("submit", async (event) => {
    event.preventDefault();
    error.textContent = "";
    const { status, body } = await post("/login", { token: token.value.trim() }).catch(() => ({ status: 0, body: {} }));
    if (status === 200) location.replace(body.location);
    else error.textContent = body.message ?? "No connection. Try again.";
  });
}

// ---------------------------------------------------------------------------------------------- start

if (find("body.annotate")) setUpAnnotation();
else document.addEventListener("click", (event) => event.target.closest("[data-action=logout]") && ACTIONS.logout());
if (find("#login")) setUpLogin();
