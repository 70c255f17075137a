// Types of asrserver.js. Options and messages are those of the WebSocket protocol: docs/reference/websocket.md.

/** Samples per second of what a Microphone hands over. */
export const SAMPLE_RATE: 16000;

/**
 * What went wrong. `code` is one of the server's (docs/reference/errors.md), or
 * - `insecure_context`: browsers give the microphone to pages of https and of localhost only
 * - `permission_denied`, `no_microphone`, `microphone_busy`: why there is no microphone
 * - `unreachable`: no answer, or none that pages of this origin may read
 * - `connection_lost`: no connection for a minute; of a file: the answer was cut off
 * - `connection_closed`: the server closed it for good
 * - `too_far_behind`: more than a minute of audio waits to be sent
 * - `http_error`: an answer that is not the server's own; `status` tells
 */
export class AsrError extends Error {
  constructor(code: string, message: string, details?: object);
  code: string;
  /** Of HTTP. */
  status?: number;
  /** Seconds after which trying again is useful. */
  retryAfter?: number;
  /** In an `error` event: whether the session is over. */
  fatal?: boolean;
  session_id?: string;
  chunk_index?: number | null;
  option?: string;
}

export interface Word {
  word: string;
  /** Seconds of the recording. */
  start: number;
  end: number;
  confidence: number;
}

export interface Segment {
  number: number;
  /** Seconds of the recording. */
  start: number;
  end: number;
  text: string;
  language: string;
  confidence: number;
  words?: Word[];
  seq?: number;
  /** Where each is recognised by itself, from 0. */
  channel?: number;
}

export interface Partial {
  start: number;
  end: number;
  text: string;
  /** The beginning of `text` that will not change. */
  stable: string;
  language: string | null;
  /** Where each is recognised by itself, from 0: it replaces the preview before of this channel. */
  channel?: number;
}

export interface ChunkResult {
  chunk_index: number;
  text: string;
  duration: number;
  language: string | null;
  seq: number;
  /** Those that are final by it, where channels are recognised separately. */
  segments?: Segment[];
}

export interface Final {
  session_id: string;
  text: string;
  duration: number;
  chunk_count: number;
  language: string | null;
  status: "done" | "interrupted" | "error";
  seq: number;
  /** Those that are final by it, where channels are recognised separately. */
  segments?: Segment[];
}

export interface Opened {
  session_id: string;
  status: "session_started" | "session_resumed";
  model?: string;
  warnings?: string[];
}

/** How texts are written; "any": as the model writes them. */
export interface Normalise {
  /** Of Chinese. */
  script?: "hans" | "hant" | "any";
  numerals?: "digits" | "words" | "any";
}

/** The options of `start`, and a signal that ends the session. */
export interface SessionOptions {
  session_id?: string;
  user_id?: string;
  /** `stream` by default. */
  mode?: "auto" | "chunk" | "stream";
  /** `pcm_s16le` by default; `auto` for what a MediaRecorder makes, `file` for a file in pieces. */
  format?: "auto" | "file" | "opus" | "pcm_s16le" | "pcm_f32le" | "pcm_mulaw" | "pcm_alaw";
  /** 16000 by default. */
  sample_rate?: number;
  /** Up to 8 where they are recognised separately, else 1 or 2. */
  channels?: number;
  /** `separate`: each channel is recognised by itself, and events have `channel`; `mix` by default. */
  channel_mode?: "mix" | "separate";
  /** Number of the audio track of a container, from 0. */
  track?: number;
  language?: string | null;
  task?: "transcribe" | "translate";
  prompt?: string;
  hotwords?: string;
  normalise?: Normalise | string;
  /** true by default. */
  partials?: boolean;
  partial_interval?: number;
  silence?: number;
  speech_events?: boolean;
  word_timestamps?: boolean;
  model?: string;
  signal?: AbortSignal;
}

export interface SessionEvents {
  /** The server has the session. */
  open: CustomEvent<Opened>;
  /** Speech was found; its text follows. Only with `speech_events`. */
  speech: CustomEvent<{ start: number; channel?: number }>;
  /** A preview of what is being said; it replaces the one before. */
  partial: CustomEvent<Partial>;
  /** What was said between two pauses. No preview of it follows. */
  segment: CustomEvent<Segment>;
  /** The result of a chunk, in the modes `auto` and `chunk`. */
  chunk: CustomEvent<ChunkResult>;
  /** The answer to `flush`: the segments of all audio before it have come. */
  flushed: CustomEvent<{ number: number; duration: number; seq: number }>;
  /** The whole session; nothing follows. */
  final: CustomEvent<Final>;
  /** A piece was lost, or the server is busy and is asked again; with `fatal`, the session is over. */
  error: CustomEvent<AsrError>;
  /** `state` has changed. */
  state: Event;
}

export type Audio = ArrayBuffer | ArrayBufferView | Blob;

export class Session extends EventTarget {
  constructor(client: Client, options?: SessionOptions);
  readonly id: string;
  readonly state: "connecting" | "open" | "reconnecting" | "finishing" | "over";
  /** Bytes that were sent and not acknowledged. */
  readonly waiting: number;
  /** Fulfilled at once while there is room, and otherwise when there is. */
  readonly ready: Promise<void>;
  /** The final message; rejected with what made the session fail, or with the signal's reason. */
  readonly result: Promise<Final>;
  readonly microphone: Microphone | null;
  send(audio: Audio): void;
  /** Have all that was said so far recognised now, without waiting for a pause. */
  flush(): void;
  finish(): Promise<Final>;
  addEventListener<K extends keyof SessionEvents>(
    type: K,
    listener: (event: SessionEvents[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

export interface MicrophoneOptions {
  /** Of getUserMedia: `deviceId`, `echoCancellation`, … */
  constraints?: MediaTrackConstraints;
  /** Where this module is to be loaded from in the AudioWorklet, if a bundler has moved it. */
  worklet?: string | URL;
  signal?: AbortSignal;
}

export interface MicrophoneEvents {
  /** A tenth of a second. */
  audio: CustomEvent<Int16Array>;
  end: Event;
}

export class Microphone extends EventTarget {
  static open(options?: MicrophoneOptions): Promise<Microphone>;
  /** The name of the device. */
  readonly label: string;
  /** How loud it is now, from 0 (-60 dB and less) to 1 (full scale). */
  readonly level: number;
  pipe(session: Session): void;
  stop(): Promise<void>;
  addEventListener<K extends keyof MicrophoneEvents>(
    type: K,
    listener: (event: MicrophoneEvents[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

export interface Progress {
  /** Bytes that were sent, and of the file. */
  sent: number;
  size: number;
  /** Seconds of it that are recognised. */
  recognised: number;
}

export interface TranscribeOptions {
  language?: string | null;
  task?: "transcribe" | "translate";
  model?: string;
  prompt?: string;
  hotwords?: string;
  /** As a text: "script=hans,numerals=digits". */
  normalise?: string;
  /** `separate`: each channel is recognised by itself, and segments have `channel`; `mix` by default. */
  channel_mode?: "mix" | "separate";
  /** Number of the audio track of the file, from 0. */
  track?: number;
  user_id?: string;
  /** Whether segments have their words; true by default. */
  words?: boolean;
  signal?: AbortSignal;
  onProgress?(progress: Progress): void;
  /** Called with each segment as it becomes final. */
  onSegment?(segment: Segment): void;
}

export interface Transcript {
  session_id: string;
  text: string;
  duration: number;
  language: string | null;
  segments: Segment[];
}

/** A session in the history: docs/reference/rest.md. */
export interface SessionRecord {
  session_id: string;
  user_id: string | null;
  status: "recording" | "done" | "interrupted" | "error";
  text: string;
  duration: number;
  language: string | null;
  model: string | null;
  audio_path: string | null;
  created_at: string;
  completed_at: string | null;
  [name: string]: unknown;
}

export interface HistoryQuery {
  limit?: number;
  cursor?: string | null;
  user_id?: string;
  status?: SessionRecord["status"];
  from?: string;
  to?: string;
  q?: string;
}

export interface Signalled {
  signal?: AbortSignal;
}

export class Client {
  /** Without `url`: the server that this module came from. */
  constructor(options?: { url?: string | URL; key?: string });
  readonly url: URL;
  /** The API key, where the server has keys; it may be changed. */
  key: string;
  start(options?: SessionOptions): Session;
  listen(options?: SessionOptions & { microphone?: MicrophoneOptions }): Promise<Session>;
  transcribe(file: Blob, options?: TranscribeOptions): Promise<Transcript>;
  /** The state of every part of the server: docs/reference/rest.md. */
  health(options?: Signalled): Promise<{ status: string; models: { name: string; languages: string[] }[]; [name: string]: unknown }>;
  history(
    query?: HistoryQuery,
    options?: Signalled,
  ): Promise<{ total: number | null; records: SessionRecord[]; cursor: string | null }>;
  session(id: string, options?: Signalled): Promise<SessionRecord & { segments: Segment[] }>;
  text(id: string, format?: "txt" | "srt" | "vtt", options?: Signalled): Promise<string>;
  recording(id: string, options?: Signalled): Promise<Blob>;
  delete(id: string): Promise<void>;
  /** Any other request, with the key; the path is from the server's root. */
  fetch(path: string, options?: RequestInit): Promise<Response>;
}

/** Changes the sample rate of mono samples that come in pieces. */
export class Resampler {
  constructor(from: number, to?: number);
  push(samples: Float32Array): Float32Array;
  flush(): Float32Array;
}

/** Samples as 16-bit integers. */
export function toPcm(samples: Float32Array): Int16Array;
