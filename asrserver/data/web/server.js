// The server as the page sees it: its address, the key, and what to tell when something goes wrong.

import { Client } from "../asrserver.js";
import { has, text, translate } from "./texts.js";
import { element } from "./transcript.js";

const $ = (id) => document.getElementById(id);

/** The key stays in the tab: sessionStorage is forgotten with it, and never sent by itself. */
const KEY = "asrserver-key";

const CROSS = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="m7 7 10 10M17 7 7 17"/></svg>';

export const client = new Client({ key: readKey() });

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // the browser keeps nothing: in memory, then
  }
}

function keepKey(key) {
  client.key = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // as above
  }
}

// -- the key --------------------------------------------------------------------------------------------------------

const DIALOG = `
  <form>
    <h2 id="key-title" data-text="key_title"></h2>
    <p data-text="key_text"></p>
    <label><span data-text="key_label"></span>
      <input type="password" name="key" autocomplete="off" spellcheck="false" required></label>
    <p role="alert"></p>
    <div class="buttons">
      <button type="button" class="quiet" data-text="cancel"></button>
      <button class="primary" data-text="key_use"></button>
    </div>
  </form>`;

let asking = null; // the promise of an answer while the dialog is open

/** Ask for a key; true if one was given. */
export function askKey() {
  $("key-button").hidden = false;
  asking ??= new Promise((answer) => {
    const dialog = document.createElement("dialog");
    dialog.setAttribute("aria-labelledby", "key-title");
    dialog.innerHTML = DIALOG;
    translate(dialog);
    if (client.key) dialog.querySelector("[role=alert]").textContent = text("key_wrong");
    const form = dialog.querySelector("form");
    let given = false;
    form.onsubmit = (event) => {
      event.preventDefault();
      given = true;
      keepKey(form.elements.key.value.trim());
      dialog.close();
    };
    form.querySelector("button").onclick = () => dialog.close();
    dialog.onclose = () => {
      dialog.remove();
      asking = null;
      answer(given);
    };
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

/** Do what may fail: where a key is missing it is asked for, and it is done again; other errors are shown. */
export async function guard(action) {
  try {
    return await action();
  } catch (error) {
    if (error.code === "unauthorized") return (await askKey()) ? guard(action) : undefined;
    if (error.name !== "AbortError") alert(error);
    return undefined;
  }
}

// -- notices --------------------------------------------------------------------------------------------------------

/** Show a text that stays, until it is closed. */
export function notice(name, values) {
  return banner($("notices"), () => text(name, values));
}

/** Show what went wrong, in place of what did before. */
export function alert(error) {
  $("alerts").replaceChildren();
  const name = `error_${error.code}`;
  if (!has(name)) console.warn(error);
  return banner($("alerts"), () => (has(name) ? text(name) : error.message));
}

export function noAlert() {
  $("alerts").replaceChildren();
}

function banner(place, say) {
  const box = element("div", "notice");
  const line = element("p", "", say());
  const close = document.createElement("button");
  close.type = "button";
  close.innerHTML = CROSS;
  close.ariaLabel = text("close");
  close.onclick = () => box.remove();
  box.append(line, close);
  place.append(box);
  document.addEventListener("language", () => {
    line.textContent = say();
    close.ariaLabel = text("close");
  });
  return box;
}

$("key-button").hidden = !client.key;
