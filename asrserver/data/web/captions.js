// Captions over a video, for OBS's browser source: what is said into the microphone, while it is said. The query has the
// options of the session (language, model, …) and how the captions look; the fragment may have a key, #key=…, which is
// so in no log.

import { Client } from "../asrserver.js";
import { has, text, translate } from "./texts.js";

/** Milliseconds without a word after which the captions go, and until a session that failed is tried again. */
const QUIET = 8000;
const RETRY = 5000;

/** Characters that are kept: more than a screen shows. */
const MOST = 1000;

const LOOKS = ["lines", "size", "background"];

/** What to do where it is something else than on the other page: OBS has no address bar, and asks for nothing. */
const ADVICE = { permission_denied: "captions_permission_denied", unauthorized: "captions_unauthorized" };

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const client = new Client({ key: new URLSearchParams(location.hash.slice(1)).get("key") ?? "" });

const style = document.documentElement.style;
for (const name of LOOKS.slice(0, 2)) if (query.has(name)) style.setProperty(`--${name}`, query.get(name));
if (query.has("background")) style.backgroundColor = document.body.style.backgroundColor = query.get("background");

const options = Object.fromEntries([...query].filter(([name, value]) => value && !LOOKS.includes(name)));
if (options.silence) options.silence = Number(options.silence);
translate();
if (options.language) $("captions").lang = options.language;
const separator = /^(zh|ja|yue|th)\b/.test(options.language ?? "") ? "" : " ";

let quiet = 0;

/** Show the text that is final and the guess that follows it, for a while. */
function show(text, guess) {
  $("text").textContent = text.slice(-MOST);
  $("guess").textContent = text && guess ? separator + guess : guess;
  $("captions").hidden = !(text || guess);
  clearTimeout(quiet);
  quiet = setTimeout(() => show("", ""), QUIET);
}

/** One session of the microphone, to its end. */
async function caption() {
  const session = await client.listen(options);
  $("problem").textContent = "";
  const said = () => $("text").textContent;
  session.addEventListener("partial", ({ detail }) => show(said(), detail.text));
  session.addEventListener("segment", ({ detail }) => show(said() ? said() + separator + detail.text : detail.text, ""));
  await session.result;
}

for (;;) {
  try {
    await caption();
  } catch (error) {
    const name = ADVICE[error.code] ?? `error_${error.code}`;
    $("problem").textContent = has(name) ? text(name) : error.message;
    await new Promise((done) => setTimeout(done, RETRY));
  }
}
