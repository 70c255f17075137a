// The player of a recording, and the tape of what the microphone heard.

import { duration, text } from "./texts.js";

const SPEEDS = [1, 1.25, 1.5, 2, 0.75];

/** Seconds of the microphone that are kept for playback: two hours take 230 MB, on disk where the browser likes. */
const MAX_SECONDS = 2 * 3600;

export class Player {
  #audio = new Audio();
  #parts;
  #source = null;
  #length = 0;
  #onTime;

  /**
   * @param parts the elements: root, play, seek, at, length, speed
   * @param onTime is called with the second that is heard
   * @param onError is called when the recording cannot be played
   */
  constructor(parts, onTime, onError) {
    this.#parts = parts;
    this.#onTime = onTime;
    const audio = this.#audio;
    audio.preload = "metadata";
    audio.onplay = audio.onpause = () => this.#render();
    audio.onended = () => this.#render();
    audio.ontimeupdate = () => this.#render();
    audio.onerror = () => audio.src && onError();
    parts.play.onclick = () => (audio.paused ? this.#start() : audio.pause());
    parts.seek.oninput = () => this.seek(Number(parts.seek.value), !audio.paused);
    parts.speed.onclick = () => this.#speed(SPEEDS[(SPEEDS.indexOf(audio.playbackRate) + 1) % SPEEDS.length]);
    document.addEventListener("language", () => this.#render());
  }

  /** Take another recording: a function that returns its URL, asked when it is first played; null: there is none. */
  load(source, seconds = 0) {
    this.#audio.pause();
    this.#audio.removeAttribute("src");
    this.#source = source;
    this.#length = seconds;
    this.#parts.root.hidden = source === null;
    this.#speed(1);
  }

  async seek(seconds, play = true) {
    if (!(await this.#open())) return;
    this.#audio.currentTime = seconds;
    if (play) await this.#start();
    this.#render();
  }

  async #open() {
    if (!this.#audio.src && this.#source) {
      const source = this.#source;
      const url = await source();
      if (url && source === this.#source) this.#audio.src = url;
    }
    return Boolean(this.#audio.src);
  }

  async #start() {
    if (!(await this.#open())) return;
    await this.#audio.play().catch(() => {}); // onerror tells, and a pause meanwhile is no error
    const follow = () => {
      this.#onTime(this.#audio.currentTime);
      if (!this.#audio.paused) requestAnimationFrame(follow);
    };
    follow();
  }

  #speed(rate) {
    this.#audio.defaultPlaybackRate = this.#audio.playbackRate = rate;
    this.#render();
  }

  #render() {
    const { root, play, seek, at, length, speed } = this.#parts;
    const seconds = this.#audio.src ? this.#audio.currentTime : 0;
    const paused = this.#audio.paused;
    root.classList.toggle("playing", !paused);
    play.ariaLabel = play.title = text(paused ? "play" : "pause");
    seek.max = this.#length;
    seek.value = seconds;
    seek.style.setProperty("--share", `${this.#length ? (100 * seconds) / this.#length : 0}%`);
    seek.ariaValueText = duration(seconds);
    at.textContent = duration(seconds);
    speed.textContent = `${this.#audio.playbackRate}×`;
    speed.ariaLabel = speed.title = `${text("speed")}: ${speed.textContent}`;
    length.textContent = duration(this.#length);
  }
}

/** What the microphone heard, as a WAV file. */
export class Tape {
  #blobs = [];
  #pieces = [];
  #samples = 0;
  #held = 0;

  constructor(rate) {
    this.rate = rate;
  }

  push(pcm) {
    this.#samples += pcm.length;
    if (this.#samples > MAX_SECONDS * this.rate) return;
    this.#pieces.push(pcm);
    this.#held += pcm.length;
    if (this.#held > 10 * this.rate) {
      this.#blobs.push(new Blob(this.#pieces));
      this.#pieces = [];
      this.#held = 0;
    }
  }

  /** The file; null if it became too long. */
  get file() {
    if (!this.#samples || this.#samples > MAX_SECONDS * this.rate) return null;
    const head = new DataView(new ArrayBuffer(44));
    const name = (at, letters) => [...letters].forEach((letter, index) => head.setUint8(at + index, letter.charCodeAt(0)));
    name(0, "RIFF");
    head.setUint32(4, 36 + 2 * this.#samples, true);
    name(8, "WAVEfmt ");
    head.setUint32(16, 16, true);
    head.setUint16(20, 1, true); // PCM
    head.setUint16(22, 1, true); // one channel
    head.setUint32(24, this.rate, true);
    head.setUint32(28, 2 * this.rate, true);
    head.setUint16(32, 2, true);
    head.setUint16(34, 16, true);
    name(36, "data");
    head.setUint32(40, 2 * this.#samples, true);
    return new Blob([head.buffer, ...this.#blobs, ...this.#pieces], { type: "audio/wav" });
  }
}
