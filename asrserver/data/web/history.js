// The list of earlier sessions, with search.

import { duration, languageName, moment, text } from "./texts.js";
import { element, whyEmpty } from "./transcript.js";

const PAGE = 15;

/** Milliseconds after the last key press before it is searched. */
const PATIENCE = 250;

export class History {
  #client;
  #parts;
  #records = [];
  #cursor = null;
  #asked = null; // the AbortController of the request that is under way
  #timer;

  /** @param parts the elements: root, search, list, none, more; @param guard runs what may fail */
  constructor(client, parts, guard) {
    this.#client = client;
    this.#parts = parts;
    parts.search.oninput = () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => guard(() => this.load()), PATIENCE);
    };
    parts.more.onclick = () => guard(() => this.#more());
    document.addEventListener("language", () => this.#render());
  }

  /** Read the newest sessions, or those that are searched. */
  async load() {
    this.#asked?.abort();
    const asked = (this.#asked = new AbortController());
    const page = await this.#page(null, asked);
    if (!page) return;
    this.#records = page.records;
    this.#render();
  }

  async #more() {
    const before = this.#records.length;
    const page = await this.#page(this.#cursor, (this.#asked = new AbortController()));
    if (!page) return;
    this.#records.push(...page.records);
    this.#render();
    this.#parts.list.children[before]?.querySelector("a").focus();
  }

  async #page(cursor, { signal }) {
    try {
      let page;
      do { // a search for a phrase may find nothing in the time of one page
        page = await this.#client.history({ limit: PAGE, cursor, q: this.#query }, { signal });
        this.#cursor = cursor = page.cursor;
      } while (!page.records.length && cursor);
      return signal.aborted ? null : page;
    } catch (error) {
      if (signal.aborted) return null;
      throw error;
    }
  }

  get #query() {
    return this.#parts.search.value.trim();
  }

  #render() {
    const { root, list, none, more } = this.#parts;
    root.hidden = !this.#records.length && !this.#query;
    list.replaceChildren(...this.#records.map(row));
    none.textContent = this.#records.length ? "" : text("nothing_found");
    more.hidden = !this.#cursor;
  }
}

function row(record) {
  const link = document.createElement("a");
  link.href = `#/${encodeURIComponent(record.session_id)}`;
  const none = record.status === "recording" ? "…" : whyEmpty(record);
  const said = element("p", record.text ? "said" : "said empty", record.text || none);
  said.lang = record.text ? record.language ?? "" : "";
  link.append(said, meta(record));
  const item = document.createElement("li");
  item.append(link);
  return item;
}

/** When it was, how long it is, in which language. */
export function meta(record) {
  const line = element("p", "meta");
  line.append(element("span", "", moment(record.created_at)), element("span", "", duration(record.duration)));
  if (record.language) line.append(element("span", "", languageName(record.language)));
  if (record.model) line.append(element("span", "", record.model));
  if (record.status !== "done") line.append(element("span", "bad", text(`status_${record.status}`)));
  return line;
}
