// The client of asrserver for browsers and Node 22: live sessions, the microphone, files, the history. One file without
// dependencies; types are in asrserver.d.ts, a guide in docs/guides/javascript.md. MIT licence.

/** Samples per second of what a Microphone hands over. */
export const SAMPLE_RATE = 16000;

/** Chunks and bytes of a session that may wait for their acknowledgement before `ready` waits. */
const WINDOW = 32;
const WINDOW_BYTES = 1 << 20;

/** Bytes that may wait at most: a minute of the microphone. A session that is further behind has failed. */
const MAX_WAITING_BYTES = 60 * 2 * SAMPLE_RATE;

/** Milliseconds of the first pause before a new attempt to connect, and of the longest; each is a random part of it. */
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 8000;

/** Milliseconds without a connection, or without being let in, after which a session has failed. */
const GIVE_UP = 60_000;

/** The number of a session in the binary frames of its connection: it has one to itself. */
const CHANNEL = 1;

/** Milliseconds in which a microphone must hand over its last samples. */
const FLUSH = 2000;

/** Close codes after which connecting again would be in vain, and errors after which the session is not there. */
const FATAL_CLOSES = new Set([1002, 1003, 1007, 1008, 1009, 1010]);
const LOST = new Set(["session_moved", "session_gone", "no_session"]);

/** The messages that are events of a session, and their names there. */
const EVENTS = {
  speech_started: "speech",
  partial_result: "partial",
  segment_result: "segment",
  chunk_result: "chunk",
  flushed: "flushed",
};

/** What went wrong. `code` is stable: one of the server's, or one of those in asrserver.d.ts. */
export class AsrError extends Error {
  constructor(code, message, details = {}) {
    super(message);
    this.name = "AsrError";
    this.code = code;
    Object.assign(this, details);
  }
}

// -- a server -------------------------------------------------------------------------------------------------------

/** A server. Without `url` it is the one that this module came from. */
export class Client {
  constructor({ url, key = "" } = {}) {
    this.url = new URL(url ?? ".", import.meta.url);
    this.url.protocol = this.url.protocol.replace("ws", "http");
    this.url.pathname = this.url.pathname.replace(/\/*(?:\/ws\/asr)?\/*$/, "/"); // the address of the WebSocket will do
    this.key = key;
  }

  /** Start a live session; `options` are those of the protocol's `start`, and `signal`. */
  start(options) {
    return new Session(this, options);
  }

  /** Start a live session of the microphone, which stops with it. */
  async listen({ microphone: how, ...options } = {}) {
    const microphone = await Microphone.open({ signal: options.signal, ...how });
    const session = this.start(options);
    microphone.pipe(session);
    return session;
  }

  /**
   * Transcribe a file.
   * @returns a promise of {session_id, text, duration, language, segments}
   */
  async transcribe(file, { onSegment, onProgress, signal, words = true, ...options } = {}) {
    const query = new URLSearchParams({ format: "ndjson", words });
    for (const [name, value] of Object.entries(options)) if (value != null && value !== "") query.set(name, value);
    const segments = [];
    let final, read = 0;
    const sent = { sent: 0, size: file.size, recognised: 0 };
    const progress = (news) => onProgress?.(Object.assign(sent, news));
    const take = (text) => {
      for (let end; (end = text.indexOf("\n", read)) >= 0; read = end + 1) {
        if (end === read) continue;
        const { type, ...message } = JSON.parse(text.slice(read, end));
        if (type === "error") throw new AsrError(message.code, message.message);
        if (type === "final_result") final = message;
        if (type !== "segment_result") continue;
        segments.push(message);
        onSegment?.(message);
        progress({ recognised: message.end });
      }
    };
    const upload = typeof XMLHttpRequest === "function" ? uploadFromPage : uploadFromNode;
    await upload(this, `api/v1/transcribe?${query}`, file, signal, progress, take);
    if (!final) throw new AsrError("connection_lost", "the answer ended before the text was complete");
    return { ...final, segments };
  }

  /** The state of every part of the server; also where one does not work. */
  async health({ signal } = {}) {
    const response = await this.#ask("api/v1/health", { signal });
    const body = await response.text();
    const state = parsed(body);
    if (!state?.status) throw refusal(response.status, body, response.headers.get("Retry-After"));
    return state;
  }

  /** Sessions, newest first: {total, records, cursor}. */
  async history(query = {}, { signal } = {}) {
    const given = Object.entries(query).filter(([, value]) => value != null && value !== "");
    return (await this.fetch(`api/v1/history?${new URLSearchParams(given)}`, { signal })).json();
  }

  /** A session with its segments and words. */
  async session(id, { signal } = {}) {
    return (await this.fetch(`api/v1/session/${encodeURIComponent(id)}`, { signal })).json();
  }

  /** The text of a session: `format` is txt, srt or vtt. */
  async text(id, format = "txt", { signal } = {}) {
    return (await this.fetch(`api/v1/session/${encodeURIComponent(id)}?format=${format}`, { signal })).text();
  }

  /** The recording of a session, where the server keeps them. */
  async recording(id, { signal } = {}) {
    return (await this.fetch(`api/v1/session/${encodeURIComponent(id)}/audio`, { signal })).blob();
  }

  /** Delete a session for good. */
  async delete(id) {
    await this.fetch(`api/v1/session/${encodeURIComponent(id)}`, { method: "DELETE" });
  }

  /** Send a request with the key; what is not a success is an AsrError. */
  async fetch(path, options) {
    const response = await this.#ask(path, options);
    if (!response.ok) throw refusal(response.status, await response.text(), response.headers.get("Retry-After"));
    return response;
  }

  async #ask(path, { headers, ...options } = {}) {
    try {
      return await fetch(new URL(path, this.url), { ...options, headers: { ...this.headers, ...headers } });
    } catch (error) {
      throw error.name === "AbortError" ? error : unreachable();
    }
  }

  get headers() {
    return this.key ? { Authorization: `Bearer ${this.key}` } : {};
  }

  /** The address of the WebSocket, and the subprotocols that show the key: a page cannot set its headers. */
  get socket() {
    const address = new URL("ws/asr", this.url);
    address.protocol = address.protocol.replace("http", "ws");
    return [address, this.key ? ["asr.v1", `bearer.${this.key}`] : ["asr.v1"]];
  }

  /** Ask why a connection is refused, which a browser does not show; null where it would not be. */
  async whyRefused() {
    try {
      await this.fetch("ws/asr");
    } catch (error) {
      return error.status === 400 ? null : error;
    }
    return null;
  }
}

/** The error of an answer that is not a success. */
function refusal(status, body, retryAfter) {
  const error = parsed(body)?.error ?? {};
  const pause = error.retry_after ?? (Number(retryAfter) || undefined);
  const message = error.message ?? `the server answered ${status}`;
  return new AsrError(error.code ?? "http_error", message, { status, retryAfter: pause });
}

/** JSON, or undefined where it is none: of a proxy, most likely. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function unreachable() {
  return new AsrError("unreachable", "the server cannot be reached, or does not allow pages of this origin");
}

/** Send a file from a page: of its two ways only this one tells how much was sent. */
function uploadFromPage(client, path, file, signal, progress, take) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const guarded = (handle) => () => {
      try {
        handle();
      } catch (error) {
        reject(error);
        request.abort();
      }
    };
    const cancel = () => request.abort();
    signal?.addEventListener("abort", cancel);
    request.open("POST", new URL(path, client.url));
    for (const [name, value] of Object.entries(client.headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded }) => progress({ sent: loaded });
    request.upload.onload = () => progress({ sent: file.size });
    request.onprogress = guarded(() => request.status === 200 && take(request.responseText));
    request.onload = guarded(() => {
      if (request.status !== 200) {
        throw refusal(request.status, request.responseText, request.getResponseHeader("Retry-After"));
      }
      take(request.responseText);
      resolve();
    });
    request.onerror = () => reject(unreachable());
    request.onabort = () => reject(signal?.reason);
    request.onloadend = () => signal?.removeEventListener("abort", cancel);
    if (signal?.aborted) reject(signal.reason);
    else request.send(file);
  });
}

async function uploadFromNode(client, path, file, signal, progress, take) {
  const headers = { "Content-Type": "application/octet-stream" };
  const response = await client.fetch(path, { method: "POST", body: file, signal, headers });
  progress({ sent: file.size });
  let text = "";
  for await (const piece of response.body.pipeThrough(new TextDecoderStream())) take((text += piece));
}

// -- a live session -------------------------------------------------------------------------------------------------

/**
 * One session. It outlives its connections: chunks are kept until they are acknowledged, and sent again.
 *
 * Events, each with its message as `detail`: open, speech, partial, segment, chunk, flushed, final, error; and state.
 */
export class Session extends EventTarget {
  /** connecting, open, reconnecting, finishing, over */
  state = "connecting";

  /** Bytes that were sent and not acknowledged. */
  waiting = 0;

  /** A promise of the final message; it fails with what made the session fail. */
  result;

  /** The Microphone that it is of, if any; each stops with the other. */
  microphone = null;

  #client;
  #start;
  #socket = null;
  #chunks = new Map(); // index → audio that is not acknowledged
  #next = 0; // index of the next chunk
  #lastSeq = 0;
  #started = false; // the server has it
  #starts = 0; // messages of `start` that were sent
  #ready = false; // it may be written to
  #resuming = false; // a resume has no answer yet
  #unanswered = false; // and will have none, as its connection is lost; it may be carried out yet
  #ended = false; // no more audio comes
  #pause = FIRST_PAUSE;
  #since = Date.now(); // when it was last let in
  #timer;
  #settle;
  #room = null; // {promise, resolve} while `ready` waits
  #signal;

  constructor(client, { signal, session_id = randomId(), ...options } = {}) {
    super();
    this.id = session_id;
    this.#client = client;
    this.#start = { mode: "stream", format: "pcm_s16le", sample_rate: SAMPLE_RATE, partials: true, ...options };
    this.result = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    this.result.catch(() => {}); // whoever asks for it sees it; nobody has to
    this.#signal = signal;
    if (signal?.aborted) {
      this.#end(signal.reason);
    } else {
      signal?.addEventListener("abort", this.#abort);
      this.#connect();
    }
  }

  /** Send the next audio: an ArrayBuffer, a view of one, or a Blob. */
  send(audio) {
    if (this.state === "over") return; // `result` says why
    if (this.#ended) throw new AsrError("session_finished", "the session is finished: nothing can be sent any more");
    const size = audio.byteLength ?? audio.size;
    if (!size) return; // the server would refuse it
    const index = this.#next++;
    this.#chunks.set(index, audio);
    this.waiting += size;
    if (this.#ready) this.#write(index, audio);
    if (this.waiting > MAX_WAITING_BYTES + WINDOW_BYTES) {
      this.#end(new AsrError("too_far_behind", "the server does not take the audio as fast as it comes"));
    }
  }

  /** A promise of room for more: sources that can wait (files, pipes) wait for it before each `send`. */
  get ready() {
    const full = this.#chunks.size >= WINDOW || this.waiting >= WINDOW_BYTES;
    if (!full || this.state === "over") return Promise.resolve();
    this.#room ??= withResolver();
    return this.#room.promise;
  }

  /** Have all that was said so far recognised now, without waiting for a pause; `flushed` is the answer. */
  flush() {
    if (this.#ready && !this.#ended) this.#say({ action: "flush", session_id: this.id });
  }

  /** Say that no more audio comes; returns `result`. */
  finish() {
    if (this.microphone) this.microphone.stop().then(() => this.#finish()); // behind its last samples
    else this.#finish();
    return this.result;
  }

  #finish() {
    if (this.#ended || this.state === "over") return;
    this.#ended = true;
    this.#tell("finishing");
    if (this.#ready) this.#say({ action: "finish", session_id: this.id });
  }

  #abort = () => {
    if (this.#ready && !this.#ended) this.#say({ action: "finish", session_id: this.id }); // or it would be waited for
    this.#end(this.#signal.reason);
  };

  // -- its connections

  #connect() {
    const [address, protocols] = this.#client.socket;
    const socket = (this.#socket = new WebSocket(address, protocols));
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.#open();
    };
    socket.onmessage = ({ data }) => socket === this.#socket && this.#take(JSON.parse(data));
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#closed(opened, code, reason);
  }

  #open() {
    const link = { session_id: this.id, channel: CHANNEL, ack_interval: 0.5 };
    if (this.#started) {
      this.#resuming = true;
      this.#say({ action: "resume", last_seq: this.#lastSeq, ...link });
    } else {
      this.#starts++;
      this.#say({ action: "start", resume: true, ...this.#start, ...link });
    }
  }

  async #closed(opened, code, reason) {
    this.#socket = null;
    this.#ready = false;
    this.#unanswered ||= this.#resuming;
    this.#resuming = false;
    if (this.state !== "connecting") this.#tell("reconnecting");
    if (FATAL_CLOSES.has(code)) {
      this.#end(new AsrError("connection_closed", reason || `the server closed the connection (${code})`));
      return;
    }
    const why = opened ? null : await this.#client.whyRefused();
    if (this.state === "over") return;
    if (why?.status && why.status < 500 && why.status !== 429) {
      this.#end(why);
    } else {
      this.#later(() => this.#connect(), why ?? new AsrError("connection_lost", "the connection was lost"));
    }
  }

  /** Try again after a pause, unless that was tried for too long. */
  #later(again, why) {
    if (Date.now() - this.#since > GIVE_UP) {
      this.#end(why);
      return;
    }
    clearTimeout(this.#timer);
    if (why.retryAfter) this.#emit("error", Object.assign(why, { fatal: false }));
    this.#timer = setTimeout(again, 1000 * (why.retryAfter ?? 0) + Math.random() * this.#pause);
    this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE);
  }

  // -- messages

  #say(message) {
    this.#socket.send(JSON.stringify(message));
  }

  #write(index, audio) {
    this.#socket.send(audio instanceof Blob ? new Blob([header(index), audio]) : framed(index, audio));
  }

  #take({ type, ...message }) {
    if (message.seq) this.#lastSeq = message.seq;
    if (type === "ack" && message.status === "received") this.#acknowledge(message.chunk_index + 1);
    else if (type === "ack") this.#letIn(message);
    else if (type === "error") this.#refused(message);
    else if (type === "final_result") this.#end(null, message);
    else if (type in EVENTS) this.#emit(EVENTS[type], message);
  }

  #letIn(message) {
    const first = !this.#started;
    this.#started = this.#ready = true;
    this.#resuming = false;
    this.#pause = FIRST_PAUSE;
    this.#since = Infinity; // from now on it counts from the loss of the connection
    this.#acknowledge(message.next_chunk_index ?? 0);
    if (first) this.#emit("open", message);
    this.#tell(this.#ended ? "finishing" : "open");
    if (message.state && message.state !== "recording") return; // it takes no more audio
    for (let index = message.next_chunk_index ?? 0; index < this.#next; index++) {
      this.#write(index, this.#chunks.get(index) ?? new ArrayBuffer(0)); // without audio: it was refused, and must be again
    }
    if (this.#ended) this.#say({ action: "finish", session_id: this.id });
  }

  #refused({ code, message, retry_after, ...details }) {
    const error = new AsrError(code, message, { retryAfter: retry_after, ...details });
    if (code === "session_detached") return; // the answer to what was on its way when `resume` was asked for
    if (code === "empty_chunk") return; // to a chunk that was refused before the connection was lost
    if (code === "session_exists" && !this.#started && this.#starts > 1) {
      this.#started = true; // an earlier start arrived, its answer did not
      this.#open();
    } else if (details.resumable || (!this.#ready && retry_after)) {
      this.#ready = false;
      this.#since = Math.min(this.#since, Date.now());
      this.#later(() => this.#socket && this.#open(), error);
    } else if (code === "session_moved" && this.#ready && this.#unanswered) {
      // to our own earlier connection: its resume waited at another gateway, and came after this one's
      this.#unanswered = this.#ready = false;
      this.#open();
    } else if (!this.#started || LOST.has(code)) {
      this.#end(error);
    } else {
      this.#acknowledge((details.chunk_index ?? -1) + 1);
      this.#emit("error", Object.assign(error, { fatal: false })); // a piece is lost, the session goes on
    }
  }

  #acknowledge(next) {
    for (const [index, audio] of this.#chunks) {
      if (index >= next) break;
      this.#chunks.delete(index);
      this.waiting -= audio.byteLength ?? audio.size;
    }
    if (this.#chunks.size < WINDOW && this.waiting < WINDOW_BYTES) this.#makeRoom();
  }

  #makeRoom() {
    this.#room?.resolve();
    this.#room = null;
  }

  #end(error, final) {
    if (this.state === "over") return;
    clearTimeout(this.#timer);
    this.#signal?.removeEventListener("abort", this.#abort);
    this.microphone?.stop();
    this.#ready = false;
    this.#chunks.clear();
    this.waiting = 0;
    this.#makeRoom();
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    if (final) {
      this.#emit("final", final);
      this.#settle.resolve(final);
    } else {
      if (error instanceof AsrError) this.#emit("error", Object.assign(error, { fatal: true }));
      this.#settle.reject(error);
    }
    this.#tell("over");
  }

  #tell(state) {
    if (state === this.state) return;
    if (state === "reconnecting") this.#since = Math.min(this.#since, Date.now());
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** The first bytes of a binary frame: channel and index, big endian. */
function header(index) {
  const view = new DataView(new ArrayBuffer(12));
  view.setUint32(0, CHANNEL);
  view.setBigUint64(4, BigInt(index));
  return new Uint8Array(view.buffer);
}

function framed(index, audio) {
  const [buffer, at] = ArrayBuffer.isView(audio) ? [audio.buffer, audio.byteOffset] : [audio, 0];
  const bytes = new Uint8Array(buffer, at, audio.byteLength);
  const frame = new Uint8Array(12 + bytes.length);
  frame.set(header(index));
  frame.set(bytes, 12);
  return frame;
}

/** crypto.randomUUID exists in secure contexts only. */
function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function withResolver() {
  let resolve;
  return { promise: new Promise((done) => (resolve = done)), resolve };
}

// -- the microphone -------------------------------------------------------------------------------------------------

/** The microphone of a page, as 16-bit PCM at SAMPLE_RATE. Events: audio (an Int16Array as `detail`), end. */
export class Microphone extends EventTarget {
  #stream;
  #context;
  #analyser;
  #node;
  #flushed = withResolver();
  #stopped = null;
  #levels = new Float32Array(1024);

  /** Ask for the microphone; the browser may ask its user. */
  static async open({ constraints = {}, worklet = import.meta.url, signal } = {}) {
    if (!globalThis.navigator?.mediaDevices?.getUserMedia) {
      throw globalThis.isSecureContext
        ? new AsrError("no_microphone", "this browser has no access to microphones")
        : new AsrError("insecure_context", "browsers give the microphone to pages of https and of localhost only");
    }
    const microphone = new Microphone();
    try {
      const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
      microphone.#stream = await navigator.mediaDevices.getUserMedia({ audio: { ...audio, ...constraints } });
      signal?.throwIfAborted();
      await microphone.#listen(worklet);
    } catch (error) {
      microphone.stop();
      throw named(error);
    }
    return microphone;
  }

  async #listen(worklet) {
    const context = (this.#context = new AudioContext());
    await context.audioWorklet.addModule(worklet).catch(() => {
      throw unreachable();
    });
    const source = context.createMediaStreamSource(this.#stream);
    this.#analyser = new AnalyserNode(context, { fftSize: this.#levels.length });
    this.#node = new AudioWorkletNode(context, "asrserver-microphone", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    this.#node.port.onmessage = ({ data }) => {
      if (data) this.dispatchEvent(new CustomEvent("audio", { detail: data }));
      else this.#flushed.resolve();
    };
    source.connect(this.#analyser);
    source.connect(this.#node);
    for (const track of this.#stream.getTracks()) track.onended = () => this.stop(); // it was unplugged, for example
  }

  /** The name of the device; empty where the browser does not tell. */
  get label() {
    return this.#stream?.getAudioTracks()[0]?.label ?? "";
  }

  /** How loud it is now: 0 is silence (-60 dB and less), 1 full scale. */
  get level() {
    this.#analyser?.getFloatTimeDomainData(this.#levels);
    const power = this.#levels.reduce((sum, sample) => sum + sample * sample, 0) / this.#levels.length;
    return Math.min(1, Math.max(0, 1 + Math.log10(power + 1e-12) / 6));
  }

  /** Send what is heard to a session. When one of the two ends, so does the other. */
  pipe(session) {
    session.microphone = this;
    this.addEventListener("audio", ({ detail }) => session.send(detail));
    this.addEventListener("end", () => session.finish());
  }

  /** Let the microphone go; done when the last samples were handed over. */
  stop() {
    this.#stopped ??= this.#stop();
    return this.#stopped;
  }

  async #stop() {
    if (this.#node && this.#context.state === "running") {
      this.#node.port.postMessage("flush");
      await Promise.race([this.#flushed.promise, new Promise((done) => setTimeout(done, FLUSH))]);
      this.#node.port.onmessage = null;
    }
    for (const track of this.#stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    await this.#context?.close();
    this.dispatchEvent(new Event("end"));
  }
}

/** The error of getUserMedia in our terms. */
function named(error) {
  const code = {
    NotAllowedError: "permission_denied",
    SecurityError: "permission_denied",
    NotFoundError: "no_microphone",
    OverconstrainedError: "no_microphone",
    NotReadableError: "microphone_busy",
  }[error.name];
  return code ? new AsrError(code, `no microphone: ${error.message}`) : error;
}

// -- resampling -----------------------------------------------------------------------------------------------------

/** Taps of the low-pass on either side, in samples of the lower rate, and the shape of its window (-80 dB). */
const ZEROS = 28;
const BETA = 8;

/** Share of the lower rate's band that passes: 7.5 of 8 kHz. */
const PASSED = 0.94;

/** Changes the sample rate of mono samples that come in pieces: a polyphase low-pass, a windowed sinc. */
export class Resampler {
  constructor(from, to = SAMPLE_RATE) {
    const divisor = commonDivisor(from, to);
    this.up = to / divisor;
    this.down = from / divisor;
    const cutoff = (PASSED * Math.min(from, to)) / from; // of the input's band
    this.half = from === to ? 0 : Math.ceil(ZEROS * Math.max(1, from / to));
    this.taps = Array.from({ length: from === to ? 0 : this.up }, (_, phase) => this.#filter(phase / this.up, cutoff));
    this.held = new Float32Array(Math.max(0, this.half - 1)); // input that is still needed; silence at first
    this.at = this.held.length; // where in it the next output lies, in whole samples
    this.phase = 0; // and the rest, in samples / up
  }

  #filter(fraction, cutoff) {
    const taps = new Float32Array(2 * this.half);
    let sum = 0;
    for (let tap = 0; tap < taps.length; tap++) {
      const x = tap - this.half + 1 - fraction;
      const inside = 1 - (x / this.half) ** 2;
      taps[tap] = inside < 0 ? 0 : sinc(cutoff * x) * bessel(BETA * Math.sqrt(inside));
      sum += taps[tap];
    }
    return taps.map((tap) => tap / sum);
  }

  /** Take samples; returns those that can be computed from all that came so far. */
  push(samples) {
    if (!this.half) return samples;
    const { half, up, down } = this;
    const joined = new Float32Array(this.held.length + samples.length);
    joined.set(this.held);
    joined.set(samples, this.held.length);
    const output = new Float32Array(Math.ceil((samples.length * up) / down) + 1);
    let made = 0;
    for (; this.at + half < joined.length; made++) {
      const taps = this.taps[this.phase], first = this.at - half + 1;
      let sum = 0;
      for (let tap = 0; tap < taps.length; tap++) sum += taps[tap] * joined[first + tap];
      output[made] = sum;
      this.phase += down;
      this.at += Math.floor(this.phase / up);
      this.phase %= up;
    }
    const used = Math.min(joined.length, this.at - half + 1);
    this.held = joined.slice(used);
    this.at -= used;
    return output.subarray(0, made);
  }

  /** The last samples, which lie within the filter's length of the end. */
  flush() {
    return this.push(new Float32Array(this.half));
  }
}

function commonDivisor(a, b) {
  return b ? commonDivisor(b, a % b) : a;
}

function sinc(x) {
  return x ? Math.sin(Math.PI * x) / (Math.PI * x) : 1;
}

/** The modified Bessel function I0, by its series. */
function bessel(x) {
  let sum = 1;
  for (let k = 1, term = 1; term > 1e-9 * sum; k++) sum += term *= (x / (2 * k)) ** 2;
  return sum;
}

/** Samples as 16-bit integers. */
export function toPcm(samples) {
  return Int16Array.from(samples, (sample) => Math.round(Math.max(-1, Math.min(1, sample)) * 32767));
}

// In an AudioWorklet, which loads this file too: collects a tenth of a second at a time.
if (typeof registerProcessor === "function") {
  registerProcessor(
    "asrserver-microphone",
    class extends AudioWorkletProcessor {
      constructor() {
        super();
        this.resampler = new Resampler(sampleRate);
        this.block = new Float32Array(Math.round(sampleRate / 10));
        this.filled = 0;
        this.ended = false;
        this.port.onmessage = () => this.flush();
      }

      process([[channel]]) {
        for (let at = 0; channel && at < channel.length; ) {
          const piece = channel.subarray(at, at + this.block.length - this.filled);
          this.block.set(piece, this.filled);
          this.filled += piece.length;
          at += piece.length;
          if (this.filled === this.block.length) this.hand(this.resampler.push(this.block));
        }
        return !this.ended;
      }

      hand(samples) {
        this.filled = 0;
        const pcm = toPcm(samples);
        if (pcm.length) this.port.postMessage(pcm, [pcm.buffer]);
      }

      flush() {
        this.hand(this.resampler.push(this.block.subarray(0, this.filled)));
        this.hand(this.resampler.flush());
        this.port.postMessage(null);
        this.ended = true;
      }
    },
  );
}
