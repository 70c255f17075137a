// The page: speak or drop a file, read along, find it again.

import { AsrError, SAMPLE_RATE } from "../asrserver.js";
import { History, meta } from "./history.js";
import { Player, Tape } from "./player.js";
import { alert, askKey, client, guard, noAlert, notice } from "./server.js";
import { duration, languageName, percent, store, stored, switchLanguage, text, translate } from "./texts.js";
import { Transcript, whyEmpty } from "./transcript.js";
import { Wave } from "./wave.js";

const $ = (id) => document.getElementById(id);
const body = document.body;

/** Level, and milliseconds, below which the microphone counts as silent. */
const QUIET = 0.1;
const QUIET_FOR = 5000;

/** What is under way: {stop, abort}; null while nothing is. */
let live = null;

/** What is shown: {id, record, source}; `source` gives the URL of its recording, null where there is none. */
let shown = null;

/** The URL of a recording in memory; it is freed with the next one. */
let held = "";

let models = [];

const transcript = new Transcript({ list: $("text"), guess: $("guess"), stable: $("stable"), unsure: $("unsure") });
const wave = new Wave($("wave"), document.querySelector(".disc"));
const player = new Player(
  { root: $("player"), play: $("play"), seek: $("seek"), at: $("at"), length: $("length"), speed: $("speed") },
  (seconds) => transcript.mark(seconds),
  () => ($("player").hidden = true),
);
const records = new History(
  client,
  { root: $("history"), search: $("search"), list: $("records"), none: $("none"), more: $("more") },
  guard,
);

// -- views ----------------------------------------------------------------------------------------------------------

/** home: the button and what was; live: text that forms; result: text that is there. */
function view(name) {
  body.dataset.view = name;
  $("hero").hidden = name !== "home";
  $("reading").hidden = name === "home";
  $("history").hidden ||= name !== "home";
  const label = name !== "live" ? "record" : live?.file ? "cancel" : "stop";
  $("record").querySelector(".caption").textContent = text(label);
  $("record").ariaLabel = $("record").title = text(label);
  document.title = name === "live" ? `● ${text("listening")}` : "asrserver";
}

/** Hold a recording in memory, and let the one before go; returns its URL. */
function hold(blob) {
  URL.revokeObjectURL(held);
  held = blob ? URL.createObjectURL(blob) : "";
  return held;
}

function home() {
  shown = null;
  player.load(null);
  hold(null);
  view("home");
  guard(() => records.load());
}

/** The address says what is shown: nothing, or #/ and the id of a session. */
async function route() {
  const id = decodeURIComponent(location.hash.replace(/^#\/?/, ""));
  const left = live;
  live = null;
  left?.abort();
  noAlert();
  if (!id) home();
  else if (shown?.id === id) result();
  else if ((await guard(() => open(id))) === undefined) {
    history.replaceState(null, "", "#");
    home();
  }
}

async function open(id) {
  const record = await client.session(id);
  transcript.clear();
  for (const segment of record.segments) transcript.add(segment);
  if (!record.segments.length && record.text) transcript.add({ start: 0, text: record.text, language: record.language });
  const kept = record.audio_path && !record.audio_path.endsWith(".zip");
  shown = { id, record, source: kept ? () => recording(id) : null };
  result();
  return record;
}

/** The URL of a recording. Where a key is needed a player cannot ask for it: it is fetched as a whole. */
function recording(id) {
  if (!client.key) return new URL(`api/v1/session/${encodeURIComponent(id)}/audio`, client.url).href;
  return guard(async () => hold(await client.recording(id)));
}

function result() {
  const { record, source } = shown;
  view("result");
  about();
  $("hint").textContent = transcript.empty ? whyEmpty(record) : "";
  player.load(source, record.duration);
  transcript.play = source && ((seconds) => player.seek(seconds));
  scrollTo({ top: 0 });
  $("heading").focus({ preventScroll: true });
}

function about() {
  if (shown) $("about").replaceChildren(...meta(shown.record).childNodes);
}

// -- recording --------------------------------------------------------------------------------------------------------

function begin(source, run) {
  noAlert();
  transcript.clear();
  const controller = new AbortController();
  live = { file: source === "file", stop: () => controller.abort(), abort: () => controller.abort(), signal: controller.signal };
  body.dataset.source = source;
  shown = null;
  player.load(null);
  hold(null);
  view("live");
  clock(null);
  tell("connecting", "opening");
  $("hint").textContent = "";
  return guardLive(run, live);
}

/** Run what is live to its end, and show what came of it: a result, or an error. */
async function guardLive(run, mine) {
  try {
    const done = await run(mine);
    if (live !== mine) return;
    live = null;
    finished(done);
  } catch (error) {
    if (live !== mine) return;
    live = null;
    if (error.code === "unauthorized" && (await askKey())) {
      begin(body.dataset.source, run);
      return;
    }
    if (error.partial) finished(error.partial);
    else home();
    if (error.name !== "AbortError" && error.code !== "unauthorized") alert(error);
  } finally {
    wave.stop();
    clock(null);
  }
}

function finished({ final, source }) {
  const record = { created_at: new Date().toISOString(), model: null, status: "done", ...final };
  shown = { id: final.session_id, record, source };
  history.pushState(null, "", `#/${encodeURIComponent(final.session_id)}`);
  result();
  if (record.status === "interrupted") alert(new AsrError("interrupted", ""));
}

function options() {
  return { language: $("language").value || null, model: $("model").value || undefined };
}

function tell(state, name, values) {
  body.dataset.state = state;
  $("status").textContent = text(name, values);
}

let ticking;

function clock(began) {
  clearInterval(ticking);
  const show = () => ($("clock").textContent = began === null ? "" : duration((performance.now() - began) / 1000));
  show();
  if (began !== null) ticking = setInterval(show, 500);
}

/** Show the newest text, unless the reader has scrolled up. */
function follow(change) {
  const page = document.documentElement;
  const below = page.scrollHeight - innerHeight - scrollY;
  change();
  if (below < 120) scrollTo({ top: page.scrollHeight });
}

function speak() {
  return begin("microphone", async (mine) => {
    const tape = new Tape(SAMPLE_RATE);
    const session = await client.listen({ ...options(), word_timestamps: true, signal: mine.signal });
    const { microphone } = session;
    const awake = navigator.wakeLock?.request("screen").catch(() => {}); // a phone would go to sleep
    const began = performance.now();
    let heardAt = began, model = null;
    mine.stop = () => {
      tell("finishing", "finishing");
      wave.stop();
      clock(null);
      session.finish();
    };
    clock(began);
    wave.start(() => {
      const level = microphone.level;
      if (level > QUIET) heardAt = performance.now();
      const quiet = performance.now() - heardAt > QUIET_FOR;
      const nothing = transcript.empty && transcript.silent;
      hint(!nothing ? "" : quiet ? text("silent", { name: microphone.label }) : text("say_something"));
      return level;
    });
    const state = () => {
      const name = { connecting: "connecting", open: "listening", reconnecting: "reconnecting", finishing: "finishing" }[session.state];
      if (name) tell(session.state, name);
    };
    state();
    microphone.addEventListener("audio", ({ detail }) => tape.push(detail));
    session.addEventListener("state", state);
    session.addEventListener("open", ({ detail }) => (model = detail.model ?? null));
    session.addEventListener("partial", ({ detail }) => follow(() => transcript.guess(detail)));
    session.addEventListener("segment", ({ detail }) => follow(() => transcript.add(detail)));
    session.addEventListener("error", ({ detail }) => detail.retryAfter && !detail.fatal && tell("connecting", "busy"));
    const came = (final) => {
      const url = hold(tape.file);
      return { final: { model, ...final }, source: url ? () => url : null };
    };
    try {
      return came(await session.result);
    } catch (error) {
      if (error instanceof AsrError && !transcript.empty) {
        error.partial = came({ session_id: session.id, duration: (performance.now() - began) / 1000, language: null });
      }
      throw error;
    } finally {
      hint("");
      (await awake)?.release();
    }
  });
}

function hint(said) {
  if ($("hint").textContent !== said) $("hint").textContent = said;
}

function read(file) {
  return begin("file", async ({ signal }) => {
    const url = hold(file);
    const all = await length(url);
    const bar = $("progress");
    const onProgress = ({ sent, size, recognised }) => {
      const sending = sent < size;
      if (sending) tell("connecting", "uploading", { percent: percent(sent / size) });
      else tell("open", all ? "recognising" : "recognising_unknown", { done: duration(recognised), all: duration(all) });
      if (!sending && !(all && recognised)) bar.removeAttribute("value");
      else bar.value = sending ? sent / size : Math.min(1, recognised / all);
    };
    onProgress({ sent: 0, size: file.size, recognised: 0 });
    const onSegment = (segment) => follow(() => transcript.add(segment));
    const { segments, ...final } = await client.transcribe(file, { ...options(), signal, onProgress, onSegment });
    return { final, source: all ? () => url : null };
  });
}

/** Seconds of a recording; 0 where the browser cannot play it. */
function length(url) {
  return new Promise((done) => {
    const audio = new Audio();
    audio.onloadedmetadata = () => done(Number.isFinite(audio.duration) ? audio.duration : 0);
    audio.onerror = () => done(0);
    audio.src = url;
  });
}

// -- what people do ---------------------------------------------------------------------------------------------------

$("record").onclick = () => (live ? live.stop() : speak());

$("file").onchange = ({ target }) => {
  if (target.files.length) read(target.files[0]);
  target.value = "";
};

$("language").onchange = ({ target }) => store("spoken", target.value);
$("model").onchange = ({ target }) => {
  store("model", target.value);
  choices(); // each has its own languages
};

$("switch").onclick = switchLanguage;

$("key-button").onclick = async () => (await askKey()) && greet();

const carries = ({ dataTransfer }) => !live && dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  body.classList.add("dropping");
});
document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  body.classList.remove("dropping");
  if (!carries(event)) return;
  event.preventDefault();
  if (event.dataTransfer.files.length) read(event.dataTransfer.files[0]);
});

$("actions").onclick = ({ target }) => guard(() => act(target.closest("button")?.dataset.action));

async function act(action) {
  if (action === "copy") {
    await navigator.clipboard.writeText(transcript.plain);
    tellButton(action, "copied");
  } else if (action === "delete") {
    if (!confirm(text("delete_question"))) return;
    await client.delete(shown.id);
    location.hash = "";
  } else if (action) {
    save(`${shown.id}.${action}`, await client.text(shown.id, action));
  }
}

function tellButton(action, name) {
  const button = $("actions").querySelector(`[data-action=${action}] span`);
  button.textContent = text(name);
  setTimeout(() => (button.textContent = text(action)), 1500);
}

function save(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "text/plain" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

addEventListener("hashchange", route);
addEventListener("beforeunload", (event) => live && event.preventDefault());
document.addEventListener("language", () => {
  labels();
  choices();
  about();
  view(body.dataset.view);
});

/** What the buttons that save are called: what stands on them is only a format. */
function labels() {
  for (const format of ["txt", "srt", "vtt"]) {
    const button = $("actions").querySelector(`[data-action=${format}]`);
    button.ariaLabel = button.title = text("save_as", { format: text(`save_${format}`) });
  }
}

// -- the beginning ----------------------------------------------------------------------------------------------------

/** The languages and models to choose from. */
function choices() {
  const [first, ...others] = models.toSorted((a, b) => (b.default ?? 0) - (a.default ?? 0)).map(({ name }) => name);
  fill($("model"), first ? [["", first], ...others.map((name) => [name, name])] : [], stored("model"));
  const { languages = [] } = models.find(({ name }) => name === ($("model").value || first)) ?? {};
  const named = languages.map((code) => [code, languageName(code)]).sort((a, b) => a[1].localeCompare(b[1]));
  fill($("language"), [["", text("detect")], ...named], stored("spoken"));
  $("model-choice").hidden = !first;
}

function fill(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, label]) => new Option(label, value, false, value === chosen)));
}

async function greet() {
  const health = await client.health();
  models = health.models ?? [];
  choices();
  if (!health.workers_ready) alert(new AsrError("no_workers", ""));
  if (models.find((model) => model.default)?.name === "demo" && !$("notices").hasChildNodes()) notice("demo");
}

translate();
labels();
choices();
if (!isSecureContext) notice("insecure", { address: `http://localhost:${location.port}` });
if (!navigator.clipboard) $("actions").querySelector("[data-action=copy]").hidden = true;
guard(greet);
route();
