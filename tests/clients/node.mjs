// OpenAI's and Deepgram's libraries for Node: one task, named on the command line; prints its result as JSON.
//
//     node node.mjs TASK PORT KEY RECORDING
//
// RECORDING is 16-bit mono WAV at 16 kHz.

import fs from "node:fs";
import { DeepgramClient } from "@deepgram/sdk";
import OpenAI from "openai";

const [task, port, apiKey, path] = process.argv.slice(2);
const pcm = fs.readFileSync(path).subarray(44);
const openai = new OpenAI({ apiKey, baseURL: `http://127.0.0.1:${port}/v1`, maxRetries: 0 });
const [http, ws] = [`http://127.0.0.1:${port}`, `ws://127.0.0.1:${port}`];
const deepgram = new DeepgramClient({
  apiKey,
  environment: { base: http, production: ws, agent: ws, agentRest: http },
  maxRetries: 0,
});

const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

const file = (more = {}) =>
  openai.audio.transcriptions.create({ model: "whisper-1", file: fs.createReadStream(path), ...more });

async function live(options = {}) {
  const texts = [];
  const connection = await deepgram.listen.v1.connect({
    model: "nova-3",
    language: "en",
    encoding: "linear16",
    sample_rate: 16000,
    interim_results: "true",
    reconnectAttempts: 0,
    ...options,
  });
  const closed = new Promise((done, failed) => {
    connection.on("message", (message) => {
      if (message.type === "Results" && message.is_final) texts.push(message.channel.alternatives[0].transcript);
    });
    connection.on("close", (event) => done(event.code));
    connection.on("error", failed);
  });
  connection.connect();
  await connection.waitForOpen();
  for (let at = 0; at < pcm.length; at += 3200) connection.sendMedia(pcm.subarray(at, at + 3200));
  connection.sendCloseStream({ type: "CloseStream" });
  return { text: texts.join.bind(texts, " "), code: await closed };
}

const tasks = {
  async file() {
    return { text: (await file()).text };
  },
  async words() {
    const found = await file({ response_format: "verbose_json", timestamp_granularities: ["word"] });
    return { text: found.words.map((one) => one.word).join(" ") };
  },
  async srt() {
    const found = await file({ response_format: "srt" });
    return { text: found.split("\n").filter((line) => /[a-z]/i.test(line)).join(" ") };
  },
  async stream() {
    let [text, deltas] = ["", ""];
    for await (const event of await file({ stream: true })) {
      if (event.type === "transcript.text.delta") deltas += event.delta;
      if (event.type === "transcript.text.done") text = event.text;
    }
    return { text: text === deltas ? text : `${deltas} is not ${text}` };
  },
  async unknown_model() {
    await file({ model: "nova-3" });
  },
  async undecodable() {
    await file({ file: await OpenAI.toFile(Buffer.alloc(400000, 7), "a.bin") });
  },
  async "deepgram file"() {
    const found = await deepgram.listen.v1.media.transcribeFile(fs.createReadStream(path), { model: "nova-3" });
    return { text: found.results.channels[0].alternatives[0].transcript };
  },
  async "deepgram unknown_model"() {
    await deepgram.listen.v1.media.transcribeFile(fs.createReadStream(path), { model: "grass" });
  },
  async "deepgram undecodable"() {
    await deepgram.listen.v1.media.transcribeFile(Buffer.alloc(400000, 7), { model: "nova-3" });
  },
  async "deepgram live"() {
    const found = await live();
    return { text: found.text(), code: found.code };
  },
};

try {
  console.log(JSON.stringify((await tasks[task]()) ?? {}));
} catch (error) {
  const status = error.status ?? error.statusCode ?? null;
  console.log(JSON.stringify({ error: error.constructor.name, status, code: error.code ?? null, message: error.message }));
}
process.exit(0);
