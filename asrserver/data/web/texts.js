// What the pages say, in English and Chinese, and how they write dates, times and languages.

const TEXTS = {
  en: {
    title: "Speak, and read along",
    lead: "Press the button and talk. Or drop a recording anywhere on this page.",
    record: "Start speaking",
    stop: "Stop",
    cancel: "Cancel",
    choose_file: "Choose a file",
    drop: "Drop it to transcribe it",
    language: "Language",
    model: "Model",
    detect: "Detect language",
    main: "To the content",
    api: "API",
    key: "API key",
    switch: "中文",
    close: "Close",

    opening: "Opening the microphone …",
    connecting: "Connecting …",
    listening: "Listening",
    busy: "The server is busy. It is asked again, and nothing of what you say is lost.",
    reconnecting: "The connection is lost. Trying again; what you say is kept.",
    finishing: "Finishing …",
    uploading: "Sending the file: {percent}",
    recognising: "Recognising: {done} of {all}",
    recognising_unknown: "Recognising: {done}",
    say_something: "Say something …",
    silent: "Nothing is heard. Is it the right microphone? It is “{name}”.",
    level: "Level of the microphone",
    progress: "Progress",
    elapsed: "Time",

    history: "Recent",
    search: "Search in what was said",
    more: "Show more",
    nothing_found: "Nothing found.",
    no_speech: "No speech was found in it.",
    status_recording: "In progress",
    status_interrupted: "Interrupted",
    status_error: "Failed",

    back: "All recordings",
    transcript: "Transcript",
    transcript_keys: "Arrow keys move from word to word, Enter plays from there.",
    copy: "Copy",
    copied: "Copied",
    save_txt: "Text",
    save_srt: "SRT",
    save_vtt: "VTT",
    save_as: "Save as {format}",
    delete: "Delete",
    delete_question: "Delete this transcript and its recording for good?",
    play: "Play",
    pause: "Pause",
    position: "Position in the recording",
    speed: "Speed",
    play_from: "Play from {time}",

    key_title: "This server asks for an API key",
    key_text: "Whoever runs it can give you one. It is kept in this tab only, and forgotten when you close it.",
    key_label: "API key",
    key_wrong: "The server does not accept this key.",
    key_use: "Use it",

    demo: "This server runs the demo model. It knows only sentences like “turn on the kitchen light” or “what is the weather in Berlin on Sunday”, spoken by a computer.",
    insecure: "Browsers give the microphone only to pages of https, and of localhost. Open this page as {address} on the server itself, or set up TLS. Files work here.",

    error_insecure_context: "The browser gives this page no microphone, because it is neither https nor localhost.",
    error_permission_denied: "The browser does not let this page use the microphone. Allow it in the address bar or in the settings, and press the button again.",
    error_no_microphone: "No microphone was found. Plug one in, and press the button again.",
    error_microphone_busy: "The microphone cannot be opened: another program may be using it.",
    error_unreachable: "The server cannot be reached. Is it running?",
    error_unauthorized: "The server does not accept this API key.",
    error_host_not_allowed: "The server does not know itself by the name in the address bar. Use its IP address, or start it with --allowed-hosts.",
    error_origin_not_allowed: "The server does not allow pages of this address: see --allowed-origins.",
    error_too_many_connections: "The server has as many connections as it may have. Try again in a moment.",
    error_too_many_sessions: "The server has as many sessions as it may have. Try again in a moment.",
    error_overloaded: "The server has more to do than it can. Try again in a moment.",
    error_rate_limited: "This key has started as many sessions as it may in this minute. Try again in a moment.",
    error_quota_exceeded: "This key has used up its audio of this minute. Try again in a moment.",
    error_shutting_down: "The server is shutting down. Try again in a moment.",
    error_connection_lost: "The connection was lost and did not come back.",
    error_connection_closed: "The server closed the connection.",
    error_too_far_behind: "More than a minute of speech waits to be sent: the connection is too slow, or the server too busy.",
    error_not_audio: "This is no audio or video that the server can read.",
    error_undecodable_audio: "This recording is damaged, or in a format that the server cannot read.",
    error_body_too_large: "This file is larger than the server accepts.",
    error_unknown_model: "The server no longer offers this model. Choose another.",
    error_model_unavailable: "This model cannot be loaded. Choose another.",
    error_recognition_failed: "The recognition failed. Try again.",
    error_session_idle: "The session was ended, because nothing came for too long.",
    error_session_too_long: "The session has reached its greatest length, and was ended.",
    error_not_found: "There is no such transcript any more.",
    error_storage_unavailable: "The history cannot be read now. Try again in a moment.",
    error_interrupted: "The session was interrupted: something may be missing.",
    error_no_workers: "No worker is ready to recognise speech. See the log of the server.",

    captions_permission_denied: "No microphone. OBS must be started with --enable-media-stream --use-fake-ui-for-media-stream.",
    captions_unauthorized: "The server wants a key: end the address with #key=YOUR-KEY.",

    docs_lead: "Speech goes in, text comes out: live on a WebSocket, or as files over HTTP.",
    docs_version: "Version {version}.",
    docs_language: "",
    docs_contents: "Contents",
    docs_quick: "In a minute",
    docs_module: "Live captions on a page of your own. The module, and its types:",
    docs_file: "A recording, on the command line; `format` may be `json`, `txt`, `srt` or `vtt`:",
    docs_socket: "Any program with a WebSocket. Objects with `action` go to the server, objects with `type` come from it, and binary frames are audio:",
    docs_query: "Without JSON to begin with: the options stand in the query, and an empty frame ends the audio.",
    docs_key: "Show the key as `Authorization: Bearer KEY`; in a browser's WebSocket as the subprotocol `bearer.KEY` beside `asr.v1`.",
    docs_parameters: "Parameters",
    docs_body: "Body: {type}",
    docs_answers: "Answers",
    docs_example: "Example",
    docs_fields: "fields",
    docs_required: "required",
    docs_several: "one of several",
    docs_or: " or ",
    docs_array: "array of {type}",
    docs_default: "default {value}",
    docs_range: "{minimum} to {maximum}",
    docs_from: "from {minimum}",
    docs_length: "at most {maximum} characters",
  },

  zh: {
    title: "说话，文字随声而现",
    lead: "按下按钮开始说话，或把录音文件拖到页面任意位置。",
    record: "开始说话",
    stop: "停止",
    cancel: "取消",
    choose_file: "选择文件",
    drop: "松开即开始识别",
    language: "语言",
    model: "模型",
    detect: "自动检测语言",
    main: "跳到内容",
    api: "接口",
    key: "API 密钥",
    switch: "English",
    close: "关闭",

    opening: "正在打开麦克风……",
    connecting: "正在连接……",
    listening: "正在聆听",
    busy: "服务器繁忙，正在重试。您说的话不会丢失。",
    reconnecting: "连接已断开，正在重连。您说的话会保留。",
    finishing: "即将完成……",
    uploading: "正在上传文件：{percent}",
    recognising: "正在识别：{done} / {all}",
    recognising_unknown: "正在识别：{done}",
    say_something: "请说话……",
    silent: "没有声音。麦克风选对了吗？当前是“{name}”。",
    level: "麦克风音量",
    progress: "进度",
    elapsed: "时间",

    history: "最近",
    search: "搜索说过的话",
    more: "显示更多",
    nothing_found: "没有找到。",
    no_speech: "其中没有发现语音。",
    status_recording: "进行中",
    status_interrupted: "已中断",
    status_error: "失败",

    back: "全部记录",
    transcript: "文字记录",
    transcript_keys: "方向键在词间移动，回车从该处播放。",
    copy: "复制",
    copied: "已复制",
    save_txt: "文本",
    save_srt: "SRT",
    save_vtt: "VTT",
    save_as: "另存为 {format}",
    delete: "删除",
    delete_question: "永久删除这条记录及其录音？",
    play: "播放",
    pause: "暂停",
    position: "录音中的位置",
    speed: "速度",
    play_from: "从 {time} 播放",

    key_title: "此服务器需要 API 密钥",
    key_text: "请向服务器的管理员索取。密钥只保存在此标签页中，关闭后即清除。",
    key_label: "API 密钥",
    key_wrong: "服务器不接受此密钥。",
    key_use: "使用",

    demo: "此服务器运行的是演示模型，只认识由电脑合成的少量句子，例如“打开卧室的窗户”或“turn on the kitchen light”。",
    insecure: "浏览器只允许 https 或 localhost 页面使用麦克风。请在服务器本机打开 {address}，或配置 TLS。此处仍可识别文件。",

    error_insecure_context: "此页面既不是 https 也不是 localhost，浏览器不允许使用麦克风。",
    error_permission_denied: "浏览器未允许此页面使用麦克风。请在地址栏或设置中允许，然后再按一次按钮。",
    error_no_microphone: "没有找到麦克风。请接好后再按一次按钮。",
    error_microphone_busy: "无法打开麦克风：可能正被其他程序使用。",
    error_unreachable: "无法连接服务器。它在运行吗？",
    error_unauthorized: "服务器不接受此 API 密钥。",
    error_host_not_allowed: "服务器不认识地址栏中的名称。请使用其 IP 地址，或以 --allowed-hosts 启动。",
    error_origin_not_allowed: "服务器不允许来自此地址的页面：参见 --allowed-origins。",
    error_too_many_connections: "服务器的连接数已达上限，请稍后再试。",
    error_too_many_sessions: "服务器的会话数已达上限，请稍后再试。",
    error_overloaded: "服务器负载过高，请稍后再试。",
    error_rate_limited: "此密钥本分钟内开始的会话已达上限，请稍后再试。",
    error_quota_exceeded: "此密钥本分钟的音频额度已用完，请稍后再试。",
    error_shutting_down: "服务器正在关闭，请稍后再试。",
    error_connection_lost: "连接已断开，未能恢复。",
    error_connection_closed: "服务器关闭了连接。",
    error_too_far_behind: "有超过一分钟的语音等待发送：连接太慢，或服务器太忙。",
    error_not_audio: "这不是服务器能读取的音频或视频。",
    error_undecodable_audio: "此录音已损坏，或格式无法读取。",
    error_body_too_large: "文件超过了服务器允许的大小。",
    error_unknown_model: "服务器不再提供此模型，请另选。",
    error_model_unavailable: "无法加载此模型，请另选。",
    error_recognition_failed: "识别失败，请重试。",
    error_session_idle: "太久没有声音，会话已结束。",
    error_session_too_long: "会话已达最大长度，已结束。",
    error_not_found: "这条记录已不存在。",
    error_storage_unavailable: "暂时无法读取历史记录，请稍后再试。",
    error_interrupted: "会话被中断：内容可能不完整。",
    error_no_workers: "没有可用的工作进程，请查看服务器日志。",

    captions_permission_denied: "没有麦克风。启动 OBS 时必须加上 --enable-media-stream --use-fake-ui-for-media-stream。",
    captions_unauthorized: "服务器要求密钥：请在地址末尾加上 #key=YOUR-KEY。",

    docs_lead: "语音进，文本出：可以在 WebSocket 上实时进行，也可以通过 HTTP 发送文件。",
    docs_version: "版本 {version}。",
    docs_language: "各接口的说明为英文。",
    docs_contents: "目录",
    docs_quick: "一分钟上手",
    docs_module: "在自己的网页上显示实时字幕。所用的模块及其类型：",
    docs_file: "在命令行中转写录音；`format` 可以是 `json`、`txt`、`srt` 或 `vtt`：",
    docs_socket: "任何支持 WebSocket 的程序。带 `action` 的对象发给服务器，带 `type` 的对象由服务器发出，二进制帧是音频：",
    docs_query: "不先发送 JSON 也可以：选项写在查询参数中，空帧表示音频结束。",
    docs_key: "以 `Authorization: Bearer KEY` 出示密钥；在浏览器的 WebSocket 中，用子协议 `bearer.KEY`，与 `asr.v1` 一起给出。",
    docs_parameters: "参数",
    docs_body: "正文：{type}",
    docs_answers: "响应",
    docs_example: "示例",
    docs_fields: "字段",
    docs_required: "必填",
    docs_several: "多个可选值之一",
    docs_or: " 或 ",
    docs_array: "{type} 的数组",
    docs_default: "默认值 {value}",
    docs_range: "{minimum} 至 {maximum}",
    docs_from: "不小于 {minimum}",
    docs_length: "最多 {maximum} 个字符",
  },
};

/** The language of the pages: the one chosen before, or the browser's. */
export let language = stored("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

/** A choice that was made at an earlier visit. */
export function stored(name) {
  try {
    return localStorage.getItem(`asrserver-${name}`);
  } catch {
    return null; // the browser keeps nothing
  }
}

export function store(name, value) {
  try {
    localStorage.setItem(`asrserver-${name}`, value);
  } catch {
    // for this visit only, then
  }
}

/** Whether there is a text of this name. */
export function has(name) {
  return name in TEXTS.en;
}

/** A text, with {names} filled in. */
export function text(name, values = {}) {
  return TEXTS[language][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

/** Fill in what stands in the HTML: data-text is the content, data-label the accessible name, data-hint a placeholder. */
export function translate(root = document) {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]")) element.ariaLabel = element.title = text(element.dataset.label);
  for (const element of root.querySelectorAll("[data-hint]")) element.placeholder = text(element.dataset.hint);
}

/** Change to the other language; every module that shows texts of its own listens to the event. */
export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  store("language", language);
  translate();
  document.dispatchEvent(new Event("language"));
}

/** 1:02:03 */
export function duration(seconds) {
  const whole = Math.floor(seconds);
  const rest = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"));
  const hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${rest.join(":")}` : `${Number(rest[0])}:${rest[1]}`;
}

/** A moment: only the time where it is of today. */
export function moment(iso) {
  const at = new Date(iso);
  const today = at.toDateString() === new Date().toDateString();
  return at.toLocaleString(document.documentElement.lang, { timeStyle: "short", ...(today ? {} : { dateStyle: "medium" }) });
}

export function percent(share) {
  return share.toLocaleString(document.documentElement.lang, { style: "percent" });
}

/** The name of a language by its code. */
export function languageName(code) {
  try {
    return new Intl.DisplayNames([document.documentElement.lang], { type: "language" }).of(code);
  } catch {
    return code;
  }
}
