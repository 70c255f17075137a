// A transcript on the page: segments with times, words that can be clicked, and the guess that follows them.

import { duration, has, text } from "./texts.js";

/** Why a session that is over has no text. */
export function whyEmpty({ error_code: code, error_message: message }) {
  if (!code) return text("no_speech");
  return has(`error_${code}`) ? text(`error_${code}`) : message;
}

/** Seconds for which a word stays marked behind its end, if no other follows. */
const LINGER = 0.25;

export class Transcript {
  #list;
  #stable;
  #unsure;
  #guess;
  #words = []; // {start, end, element}, in order
  #now = null;
  #play = null;

  constructor({ list, guess, stable, unsure }) {
    [this.#list, this.#guess, this.#stable, this.#unsure] = [list, guess, stable, unsure];
    list.addEventListener("click", ({ target }) => this.#playFrom(target));
    list.addEventListener("keydown", (event) => this.#key(event));
    this.clear();
  }

  /** What plays the recording from a second; null where there is none. */
  set play(play) {
    this.#play = play;
    this.#list.classList.toggle("playable", play !== null);
    for (const button of this.#list.querySelectorAll(".when")) button.disabled = play === null;
    this.#select(play && this.#words[0]?.element);
  }

  get empty() {
    return !this.#list.hasChildNodes();
  }

  /** Whether nothing is guessed. */
  get silent() {
    return this.#guess.classList.contains("empty");
  }

  get plain() {
    return [...this.#list.querySelectorAll("p")].map((line) => line.textContent).join("\n");
  }

  clear() {
    this.#list.replaceChildren();
    this.#words = [];
    this.#now = null;
    this.play = null;
    this.guess();
  }

  /** Add what is final; its guess is over. */
  add(segment) {
    const row = element("div", "segment");
    const time = duration(segment.start);
    const when = element("button", "when", time);
    when.type = "button";
    when.disabled = this.#play === null;
    when.ariaLabel = text("play_from", { time });
    when.dataset.start = segment.start;
    const line = document.createElement("p");
    line.lang = segment.language ?? "";
    line.append(...this.#spoken(segment));
    row.append(when, line);
    this.#list.append(row);
    this.guess();
  }

  /** Show the guess of what is being said: its beginning is certain, the rest may change. */
  guess({ stable = "", text: all = "" } = {}) {
    this.#stable.textContent = stable;
    this.#unsure.textContent = all.slice(stable.length);
    this.#guess.classList.toggle("empty", !all);
  }

  /** Mark the word that is heard at a second of the recording. */
  mark(seconds) {
    let low = 0, high = this.#words.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#words[middle].start <= seconds) low = middle + 1;
      else high = middle;
    }
    const word = this.#words[low - 1];
    const now = word && seconds < word.end + LINGER ? word.element : null;
    if (now === this.#now) return;
    this.#now?.classList.remove("now");
    now?.classList.add("now");
    this.#now = now;
    const place = now?.getBoundingClientRect();
    if (place && (place.top < 60 || place.bottom > innerHeight - 110)) now.scrollIntoView({ block: "center", behavior: "smooth" });
  }

  /** The words of a segment, each an element, and what stands between them. */
  #spoken({ text: all, words }) {
    const parts = [];
    let at = 0;
    for (const { word, start, end } of words ?? []) {
      const bare = word.trim();
      const found = all.indexOf(bare, at);
      if (found < 0 || !bare) continue;
      if (found > at) parts.push(all.slice(at, found));
      const shown = element("span", "word", bare);
      shown.dataset.start = start;
      shown.tabIndex = -1;
      this.#words.push({ start, end, element: shown });
      parts.push(shown);
      at = found + bare.length;
    }
    parts.push(all.slice(at));
    return parts;
  }

  #playFrom(target) {
    if (this.#play === null || target.dataset.start === undefined) return;
    if (target.classList.contains("word")) this.#select(target);
    this.#play(Number(target.dataset.start));
  }

  /** All words are one stop of the tabulator; arrows move among them. */
  #key(event) {
    if (this.#play === null || !event.target.classList.contains("word")) return;
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) {
      const next = this.#words[this.#words.findIndex((word) => word.element === event.target) + step];
      if (next) {
        this.#select(next.element);
        next.element.focus();
      }
    } else if (event.key === "Enter" || event.key === " ") {
      this.#playFrom(event.target);
    } else {
      return;
    }
    event.preventDefault();
  }

  #select(word) {
    const before = this.#list.querySelector(".word[role]");
    if (before) {
      before.tabIndex = -1;
      before.removeAttribute("role");
    }
    if (word) {
      word.tabIndex = 0;
      word.role = "button";
    }
  }
}

export function element(name, className, content = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = content;
  return made;
}
