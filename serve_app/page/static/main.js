/** What the page does: from a file, an address or the microphone to a transcript. */
import { ApiError, follow, json, key, request, send } from "./api.js";
import { forgetErased, keepAudio, keptAudio } from "./audio.js";
import { command } from "./commands.js";
import { Transcript } from "./document.js";
import { byId, clock, copy, make } from "./elements.js";
import { FORMATS, renamed, written } from "./formats.js";
import { JobList, nameJob, nameOf } from "./jobs.js";
import { Player } from "./player.js";
import { record } from "./recorder.js";
import { Running } from "./running.js";
import { Search } from "./search.js";
import { SegmentList, colourOf } from "./segments.js";
import { explain, language, languageName, locale, setLanguage, t, translate } from "./words.js";

const LANGUAGES = ["de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "uk", "zh"];

const LOOKING_MS = 5000; // who scrolls is not taken back to the playing word for a while

const uploads = new Set(); // what ends each of those that are on their way
const audioOf = new Map(); // job id -> its File, as long as the page is open
let transcript = null;
let source = "talk.mp3"; // of the last request, for the commands
let followed = null; // what ends the following of a job
let shownNumber = 0; // of what is shown as running: an upload that it was before goes on unseen
let scrolledAt = 0;

const player = new Player((timeS) => {
  const isFollowed = byId("follow").checked && !byId("audio").paused && Date.now() - scrolledAt > LOOKING_MS;
  segments.mark(timeS, isFollowed);
});
const segments = new SegmentList(byId("segments"), {
  play: (timeS) => player.play(timeS),
  edited: () => {
    changed();
    search.run();
  },
  moved: () => {
    showSpeakers();
    changed();
  },
});
const search = new Search(segments);
const running = new Running();
const jobs = new JobList({
  open,
  follow: (job) => {
    running.begin(nameOf(job), { isUploaded: true });
    return watch(job, nameOf(job));
  },
  deleted: (id) => {
    audioOf.delete(id);
    if (transcript?.jobId === id) byId("transcript").hidden = true;
  },
  failed: tell,
});

/** Shows what a change to the transcript changes besides the text. */
function changed() {
  player.turns = transcript.turns();
  player.draw();
  player.describe();
  showShares();
}

// --- Saying what went wrong ---

function tell(error, again) {
  if (error.name === "AbortError") return;
  if (!(error instanceof ApiError) && !("code" in error)) console.error(error);
  if (error.code === "jobs_off") return; // the page does without
  if (error.status === 401) askForKey();
  say(explain(error) || t("error_500"), again);
}

function say(text, again) {
  const retry = again && make("button", { type: "button" }, t("retry"));
  retry?.addEventListener("click", () => {
    say("");
    again();
  });
  byId("alert").replaceChildren(...(text ? [make("p", {}, text), ...(retry ? [retry] : [])] : []));
}

// --- The key ---

function askForKey() {
  byId("key").hidden = false;
  byId("key-field").focus();
}

/** Asks the server for the jobs, which it shows with the right key only. */
async function enter() {
  const isIn = await jobs.refresh();
  if (isIn) {
    forgetErased(jobs.jobs.map((job) => job.id));
    if (byId("key").contains(document.activeElement)) byId("main").focus();
    byId("key").hidden = true;
    byId("key-field").value = "";
  }
  byId("key-show").hidden = !(isIn && key.get());
}

byId("key-show").addEventListener("click", askForKey);

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key-field").value.trim());
  say("");
  enter();
});
byId("key-forget").addEventListener("click", () => {
  key.set("");
  enter();
});

// --- Sending audio ---

function options() {
  const chosen = [...new FormData(byId("options-form"))].filter(([, value]) => value.trim());
  return Object.fromEntries(chosen.map(([name, value]) => [name, value.trim()]));
}

/** Sends a File or a URL, and shows its transcript when it is there; gives false where it was refused. */
async function transcribe(audio, { isShown = true } = {}) {
  const name = typeof audio === "string" ? audio.split(/[?#]/)[0].split("/").filter(Boolean).at(-1) : audio.name;
  source = typeof audio === "string" ? audio : audio.name;
  showCommand();
  say("");
  const sending = new AbortController();
  const number = isShown ? ++shownNumber : -1;
  if (isShown) {
    followed?.abort();
    running.begin(name);
    byId("running-cancel").onclick = () => sending.abort();
  }
  const onSent = (part) => number === shownNumber && running.sent(part);
  uploads.add(sending);
  try {
    const job = await send("v1/jobs", audio, options(), onSent, sending.signal);
    nameJob(job.id, name);
    if (typeof audio !== "string") hold(job.id, audio);
    jobs.refresh();
    uploads.delete(sending);
    if (number === shownNumber) await watch(job, name);
  } catch (error) {
    if (error.code === "jobs_off") return transcribeAtOnce(audio, name, onSent, sending.signal);
    if (number === shownNumber) running.end();
    tell(error, () => transcribe(audio, { isShown }));
    return false;
  } finally {
    uploads.delete(sending);
  }
  return true;
}

/** For a server that keeps no jobs: one long request. */
async function transcribeAtOnce(audio, name, onSent, signal) {
  try {
    const isTranslated = options().task === "translate";
    const answer = await send("predict", audio, { ...options(), ...(isTranslated ? {} : { word_timestamps: "true" }) }, onSent, signal);
    running.end();
    await show(new Transcript(answer, { name, isTranslation: isTranslated }), typeof audio === "string" ? null : audio);
  } catch (error) {
    running.end();
    tell(error, () => transcribe(audio));
  }
}

/** Follows a job to its end, and opens its transcript. */
async function watch(job, name) {
  followed?.abort();
  const ending = (followed = new AbortController());
  shownNumber++;
  byId("running-cancel").onclick = async () => {
    await request(`v1/jobs/${job.id}/cancel`, { method: "POST" }).catch(tell);
    jobs.refresh();
  };
  let last = job;
  running.show(job);
  try {
    await follow(
      job.id,
      (event, data) => {
        if (event === "segments") {
          running.add(data);
          return;
        }
        if (data.status !== last.status) jobs.refresh();
        running.show((last = data));
      },
      ending.signal,
    );
    running.end();
    if (last.status === "succeeded") {
      byId("spoken").textContent = t("said_done", { name });
      await open(last);
    } else if (last.status === "failed") {
      say(explain({ status: null, ...last.error }) || t("status_failed"));
    } else if (last.status === "canceled" || last.status === "expired") {
      say(t(`job_${last.status}`));
    }
  } catch (error) {
    if (error.name !== "AbortError") running.end();
    tell(error);
  }
}

// --- Showing a transcript ---

/** Opens the transcript of a job that has succeeded. */
async function open(job) {
  say("");
  const result = (words) => json(`v1/jobs/${job.id}/result?response_format=json${words}`);
  let isTranslation = false;
  try {
    const answer = await result("&word_timestamps=true").catch((error) => {
      if (error.status !== 400) throw error;
      isTranslation = true; // it has no words with times
      return result("");
    });
    await show(new Transcript(answer, { jobId: job.id, name: nameOf(job), isTranslation }), audioOf.get(job.id) ?? null);
  } catch (error) {
    tell(error);
  }
}

/** Holds a job's audio as long as the page is open, and in this browser's storage if there is room. */
function hold(jobId, audio) {
  audioOf.set(jobId, audio);
  keepAudio(jobId, audio);
}

/** Draws the waveform of the transcript, if the server has its peaks. */
async function drawWaveform() {
  const shown = transcript;
  if (!shown.jobId) return;
  const { peaks } = await json(`v1/jobs/${shown.jobId}/peaks`).catch(() => ({ peaks: "" }));
  if (transcript === shown) player.showPeaks(Float32Array.from(atob(peaks), (peak) => peak.charCodeAt(0) / 128));
}

/** Has the player play this audio, or else what this browser has kept. */
async function listen(audio) {
  const shown = transcript;
  const { jobId } = shown;
  player.load(shown, audio);
  if (audio || !jobId) return;
  player.missing("loading_audio");
  const found = await keptAudio(jobId);
  if (transcript !== shown || audioOf.has(jobId)) return; // meanwhile, another job or file was chosen
  if (found) audioOf.set(jobId, found);
  player.load(shown, found);
}

async function show(opened, audio) {
  transcript = opened;
  byId("transcript").hidden = false;
  byId("find").value = "";
  showAbout();
  showSpeakers();
  listen(audio);
  drawWaveform();
  player.describe();
  showShares();
  byId("transcript-title").focus({ preventScroll: true });
  byId("transcript").scrollIntoView({ block: "start" });
  const isWhole = await segments.show(transcript);
  if (isWhole) {
    segments.marked = "";
    search.run();
  }
}

function showAbout() {
  byId("transcript-title").textContent = transcript.name;
  document.title = `${transcript.name} – WhisperX`;
  const words = transcript.segments.reduce((sum, { words, text }) => sum + (words.length || text.split(/\s+/).length), 0);
  const about = {
    language: transcript.language ? languageName(transcript.language) : "–",
    duration: clock(transcript.durationS),
    words: words.toLocaleString(locale()),
    model: transcript.answer.model,
  };
  byId("about").textContent = transcript.segments.length ? t("about", about) : t("no_speech");
  byId("warnings").hidden = !transcript.answer.warnings.length;
  byId("warnings").replaceChildren(...transcript.answer.warnings.map(({ message }) => make("li", {}, message)));
  byId("subtitles").hidden = transcript.isTranslation;
  const hasTurns = transcript.speakers.length > 0;
  byId("downloads").replaceChildren(
    ...Object.entries(FORMATS)
      .filter(([format]) => format !== "rttm" || (hasTurns && transcript.jobId))
      .map(([format]) => {
        const label = format === "text" ? "TXT" : format.toUpperCase();
        return make("button", { type: "button", "data-format": format, "aria-label": t("download_as", { format: label }) }, label);
      }),
  );
}

function showSpeakers() {
  byId("speakers").hidden = !transcript.speakers.length;
  byId("speakers").querySelector(".row").replaceChildren(
    ...transcript.speakers.map((speaker) =>
      make(
        "label",
        { class: `name ${colourOf(transcript, speaker)}` },
        make("span", { class: "hidden" }, t("speaker_name", { name: speaker })),
        make("span", { class: "swatch", "aria-hidden": "true" }),
        make("input", { value: transcript.nameOf(speaker), "data-speaker": speaker, maxlength: "64", autocomplete: "off", size: "14" }),
        make("span", { class: "share" }),
      ),
    ),
  );
}

function showShares() {
  const shares = player.shares();
  for (const input of byId("speakers").querySelectorAll("input")) {
    input.parentElement.querySelector(".share").textContent = `${shares.get(input.dataset.speaker) ?? 0} %`;
  }
}

byId("speakers").addEventListener("input", ({ target }) => {
  transcript.rename(target.dataset.speaker, target.value);
  segments.showNames();
  player.describe();
});
byId("speakers").addEventListener("change", ({ target }) => (target.value = transcript.nameOf(target.dataset.speaker)));

byId("subtitles-form").addEventListener("submit", (event) => event.preventDefault());
byId("sub-width").addEventListener("input", ({ target }) => (byId("sub-count").disabled = !target.value));

byId("downloads").addEventListener("click", async ({ target }) => {
  const { format } = target.closest("button")?.dataset ?? {};
  if (!format) return;
  try {
    save(await inFormat(format), format);
  } catch (error) {
    tell(error);
  }
});

/** The transcript in a format: the server's, unless the user has changed something that is in it. */
async function inFormat(format) {
  const { jobId } = transcript;
  const hasLines = format === "srt" || format === "vtt";
  const layout = hasLines ? subtitleLayout() : {};
  const isServers = jobId && (!transcript.isChanged || format === "rttm" || (hasLines && !transcript.isEdited));
  if (!isServers) return written(transcript, format, { layout });
  const query = new URLSearchParams({ response_format: format, ...layout });
  if (format === "json" && transcript.segments.some((segment) => segment.words.length)) query.set("word_timestamps", "true");
  const servers = await (await request(`v1/jobs/${jobId}/result?${query}`)).text();
  if (!transcript.isChanged) return servers;
  return hasLines ? renamed(transcript, format, servers) : written(transcript, format, { serversRttm: servers });
}

/** How the user wants the lines of subtitles, as the API has it. */
function subtitleLayout() {
  if (transcript.isTranslation) return {};
  return Object.fromEntries([...new FormData(byId("subtitles-form"))].filter(([, value]) => value));
}

function save(text, format) {
  const [end, type] = FORMATS[format];
  const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const name = transcript.name.replace(/\.\w{1,5}$/, "") || "transcript";
  make("a", { href: url, download: `${name}.${end}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

byId("copy-text").addEventListener("click", async () => {
  byId("text-copied").textContent = t((await copy(written(transcript, "text"))) ? "copied" : "not_copied");
});

byId("shade").addEventListener("change", ({ target }) => byId("segments").classList.toggle("plain", !target.checked));
byId("attach").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (!file || !transcript) return;
  if (transcript.jobId) hold(transcript.jobId, file);
  listen(file);
});

// --- Files, addresses, the microphone ---

async function take(files) {
  const audio = [...files];
  if (!audio.length) {
    say(t("not_audio"));
    return;
  }
  const [first, ...others] = audio;
  const shown = transcribe(first);
  for (const file of others) if (!(await transcribe(file, { isShown: false }))) break;
  await shown;
}

byId("files").addEventListener("change", ({ target }) => {
  take(target.files);
  target.value = "";
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    byId("drop").classList.add("over");
  });
}
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (name === "dragleave" && event.relatedTarget) return;
    byId("drop").classList.remove("over");
    if (name !== "drop" || ![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});
addEventListener("beforeunload", (event) => uploads.size && event.preventDefault());
for (const name of ["wheel", "touchmove"]) addEventListener(name, () => (scrolledAt = Date.now()), { passive: true });
byId("url-form").addEventListener("submit", (event) => {
  event.preventDefault();
  transcribe(byId("url").value.trim());
});

let recording = null;
byId("record").addEventListener("click", async () => {
  const [, word] = byId("record").children;
  if (recording) {
    const { stop, timer } = recording;
    recording = null;
    clearInterval(timer);
    byId("record").classList.remove("on");
    byId("record-time").hidden = true;
    word.textContent = t("record");
    transcribe(await stop());
    return;
  }
  say("");
  try {
    const begun = Date.now();
    const time = new Date().toLocaleTimeString(locale(), { timeStyle: "short" }).replace(/:/g, ".");
    const started = await record(t("recording_name", { time }));
    const show = () => (byId("record-time").textContent = `${t("recording")} ${clock((Date.now() - begun) / 1000)}`);
    recording = { ...started, timer: setInterval(show, 500) };
    show();
    byId("record").classList.add("on");
    byId("record-time").hidden = false;
    word.textContent = t("record_stop");
  } catch (error) {
    say(t(error.message));
  }
});

// --- Commands, keyboard, language ---

function showCommand() {
  const url = byId("url").value.trim();
  byId("command").textContent = command(byId("command-kind").value, url || source, options());
}

byId("copy-command").addEventListener("click", async () => {
  byId("copied").textContent = t((await copy(byId("command").textContent)) ? "copied" : "not_copied");
});
for (const id of ["command-kind", "options-form", "url-form", "commands"]) {
  for (const name of ["input", "toggle"]) byId(id).addEventListener(name, showCommand);
}
byId("options-form").addEventListener("submit", (event) => event.preventDefault());

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input:not([type=checkbox]), select, textarea, [contenteditable], pre, [role=log]");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || byId("transcript").hidden) return;
  if (event.key === "/") byId("find").focus();
  else if (event.key === " " && !event.target.closest("button, summary, a, input")) player.toggle();
  else if (event.key === "ArrowLeft") player.seek(player.timeS - 5);
  else if (event.key === "ArrowRight") player.seek(player.timeS + 5);
  else return;
  event.preventDefault();
});

byId("interface-language").addEventListener("change", ({ target }) => {
  setLanguage(target.value);
  showAll();
});

/** Shows in the chosen language what is not a fixed text. */
function showAll() {
  byId("o-language").placeholder = t("o_language_auto");
  byId("languages").replaceChildren(...LANGUAGES.map((code) => make("option", { value: code }, languageName(code))));
  jobs.show();
  showCommand();
  if (!transcript) return;
  showAbout();
  showSpeakers();
  showShares();
  player.describe();
  segments.show(transcript);
}

translate();
byId("interface-language").value = language();
showAll();
enter();
