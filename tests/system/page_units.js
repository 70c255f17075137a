// Checks of asrserver.js that need a browser, or any JavaScript, but no server: returns what is wrong. test_page.py runs
// it in the page.
(async () => {
  const { Client, Resampler, SAMPLE_RATE, Session, toPcm } = await import("/asrserver.js");
  const wrong = [];
  const check = (what, found, wanted = true) => {
    if (JSON.stringify(found) !== JSON.stringify(wanted)) wrong.push(`${what}: ${JSON.stringify(found)}`);
  };
  const turn = () => new Promise((done) => setTimeout(done));
  const code = (promise) => promise.then(() => "fulfilled", (error) => error.code ?? error.name);

  // -- the resampler: what can be heard stays, what would be folded into it goes

  const tone = (hertz, rate) => Float32Array.from({ length: rate }, (_, at) => Math.sin((2 * Math.PI * hertz * at) / rate));
  const resampled = (samples, from, piece) => {
    const resampler = new Resampler(from);
    const parts = [];
    for (let at = 0; at < samples.length; at += piece) parts.push(...resampler.push(samples.subarray(at, at + piece)));
    return Float32Array.from([...parts, ...resampler.flush()]);
  };
  const worst = (found, wanted) => found.slice(100, -100).reduce((most, one, at) => Math.max(most, Math.abs(one - wanted[at + 100])), 0);
  for (const from of [8000, 16000, 44100, 48000, 96000]) {
    const heard = resampled(tone(1000, from), from, 731);
    check(`length from ${from}`, heard.length, SAMPLE_RATE);
    check(`1 kHz from ${from}`, worst(heard, tone(1000, SAMPLE_RATE)) < 1e-3);
    check(`pieces from ${from}`, worst(heard, resampled(tone(1000, from), from, from)), 0);
    if (from > 24000) check(`9 kHz from ${from}`, worst(resampled(tone(9000, from), from, 4800), new Float32Array(SAMPLE_RATE)) < 1e-3);
  }
  check("samples as integers", [...toPcm(Float32Array.of(0, 1, -1, 2, -2, 0.5))], [0, 32767, -32767, 32767, -32767, 16384]);

  // -- why a session has no text: an empty recording, or one that could not be read

  const { text } = await import("/web/texts.js");
  const { whyEmpty } = await import("/web/transcript.js");
  check("nobody speaks", whyEmpty({ text: "", error_code: null }), text("no_speech"));
  check("an error in words", whyEmpty({ error_code: "undecodable_audio", error_message: "x" }), text("error_undecodable_audio"));
  check("any other error", whyEmpty({ error_code: "something_new", error_message: "as it is" }), "as it is");

  // -- the protocol, against a socket that the test holds

  const real = { WebSocket: globalThis.WebSocket, fetch: globalThis.fetch, random: Math.random };
  let sockets = [];
  class Socket {
    sent = [];
    constructor(address, protocols) {
      Object.assign(this, { address: String(address), protocols });
      sockets.push(this);
    }
    send(data) {
      this.sent.push(typeof data === "string" ? JSON.parse(data) : [...data]);
    }
    close() {
      this.closed = true;
    }
    answer(message) {
      this.onmessage({ data: JSON.stringify(message) });
    }
    get indexes() {
      return this.sent.filter(Array.isArray).map((frame) => frame[11]);
    }
  }
  const opened = async () => {
    await turn();
    const socket = sockets.at(-1);
    socket.onopen();
    return socket;
  };
  const lose = async (socket, close = 1006) => {
    socket.onclose({ code: close, reason: "" });
    await turn();
  };
  const STARTED = { type: "ack", status: "session_started", session_id: "s", model: "base" };
  const session = (options = {}) => {
    sockets = [];
    return new Session(client, { session_id: "s", ...options });
  };
  const client = new Client({ url: "wss://host:1/asr/ws/asr", key: "secret" });
  for (const url of ["http://h:1", "http://h:1/", "ws://h:1/ws/asr"]) check(url, new Client({ url }).url.href, "http://h:1/");

  try {
    globalThis.WebSocket = Socket;
    Math.random = () => 0;

    let one = session({ language: "en" });
    let model;
    one.addEventListener("open", ({ detail }) => (model = detail.model));
    one.send(Uint8Array.of(1, 2));
    let socket = await opened();
    check("address", [socket.address, socket.protocols], ["wss://host:1/asr/ws/asr", ["asr.v1", "bearer.secret"]]);
    const defaults = { mode: "stream", format: "pcm_s16le", sample_rate: 16000, partials: true };
    const link = { session_id: "s", channel: 1, ack_interval: 0.5 };
    check("start", socket.sent, [{ action: "start", resume: true, ...defaults, language: "en", ...link }]);
    socket.answer(STARTED);
    check("model", [model, one.state], ["base", "open"]);
    check("audio from before", socket.sent[1], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    one.send(Uint8Array.of(3, 4, 5));
    one.send(new ArrayBuffer(0));
    check("waiting", one.waiting, 5);
    socket.answer({ type: "ack", status: "received", chunk_index: 0, through: true });
    check("waiting after the acknowledgement", one.waiting, 3);

    // A lost connection: resumed behind the last result, with what was not acknowledged, and the end again.
    socket.answer({ type: "segment_result", seq: 7, number: 0, text: "a" });
    one.send(Uint8Array.of(6));
    const result = one.finish();
    await lose(socket);
    check("state without a connection", one.state, "reconnecting");
    const next = await opened();
    check("resume", next.sent, [{ action: "resume", last_seq: 7, ...link }]);
    next.answer({ type: "ack", status: "session_resumed", state: "recording", next_chunk_index: 2 });
    check("sent again", [next.indexes, next.sent.at(-1)], [[2], { action: "finish", session_id: "s" }]);
    next.answer({ type: "final_result", seq: 8, text: "a", status: "done" });
    check("result", [(await result).text, one.state, next.closed], ["a", "over", true]);
    one.send(Uint8Array.of(1)); // in vain, but no error: a microphone may have some left

    // A chunk that was refused last is refused again after a lost connection, or those after it would be out of order.
    one = session();
    const errors = [];
    one.addEventListener("error", ({ detail }) => errors.push(detail.code));
    socket = await opened();
    socket.answer(STARTED);
    for (const byte of [7, 8, 9]) one.send(Uint8Array.of(byte));
    socket.answer({ type: "ack", status: "received", chunk_index: 0, through: true });
    socket.answer({ type: "error", code: "quota_exceeded", message: "", chunk_index: 1, retry_after: 30 });
    await lose(socket);
    socket = await opened();
    socket.answer({ type: "ack", status: "session_resumed", state: "recording", next_chunk_index: 1 });
    check("sent behind a refused one", socket.sent.slice(1).map((frame) => [frame[11], ...frame.slice(12)]), [[1], [2, 9]]);
    socket.answer({ type: "error", code: "empty_chunk", message: "", chunk_index: 1 });
    check("refused once", errors, ["quota_exceeded"]);

    // The answer to a start is lost.
    one = session();
    await lose(await opened());
    socket = await opened();
    check("start again", socket.sent[0].action, "start");
    socket.answer({ type: "error", code: "session_exists", message: "" });
    check("resumes its own", socket.sent[1], { action: "resume", last_seq: 0, ...link });

    // A server that is busy is asked again; other refusals of a start are the end.
    one = session();
    let told;
    one.addEventListener("error", ({ detail }) => (told = [detail.code, detail.fatal]));
    socket = await opened();
    socket.answer({ type: "error", code: "overloaded", message: "", retry_after: 0.001 });
    check("busy", told, ["overloaded", false]);
    await new Promise((done) => setTimeout(done, 10));
    check("asked again", socket.sent.map(({ action }) => action), ["start", "start"]);
    socket.answer({ type: "error", code: "bad_option", message: "", option: "mode" });
    check("refused", [await code(one.result), told], ["bad_option", ["bad_option", true]]);

    // Sources that can wait do, and one that cannot fails at its bound.
    one = session();
    for (let index = 0; index < 32; index++) one.send(new Uint8Array(1));
    let room = false;
    one.ready.then(() => (room = true));
    socket = await opened();
    socket.answer(STARTED);
    await turn();
    check("no room", room, false);
    socket.answer({ type: "ack", status: "received", chunk_index: 3, through: true });
    await turn();
    check("room", room);
    for (let second = 0; second < 100; second++) one.send(new Uint8Array(32000));
    check("too far behind", [await code(one.result), one.waiting], ["too_far_behind", 0]);

    // The end by the caller, and by the server.
    const controller = new AbortController();
    one = session({ signal: controller.signal });
    socket = await opened();
    socket.answer(STARTED);
    controller.abort();
    check("aborted", [await code(one.result), socket.sent.at(-1).action, socket.closed], [20, "finish", true]);
    one = session();
    await lose(await opened(), 1008);
    check("closed for good", [await code(one.result), sockets.length], ["connection_closed", 1]);

    // Why a connection was refused, which no browser tells.
    globalThis.fetch = async () => new Response('{"error": {"code": "unauthorized", "message": ""}}', { status: 401 });
    one = session();
    await turn();
    await lose(sockets[0]);
    check("refused by its key", await code(one.result), "unauthorized");
  } finally {
    Object.assign(globalThis, { WebSocket: real.WebSocket, fetch: real.fetch });
    Math.random = real.random;
  }
  return wrong;
})();
