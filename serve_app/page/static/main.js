/** What the page does: from a file, an address or the microphone to a transcript. */
import { json, key, request } from "./api.js";
import { forgetAudio, jobsWithAudio, keepAudio, keptAudio } from "./audio.js";
import { command } from "./commands.js";
import { Transcript, changedJobs, forgetChanges } from "./document.js";
import { byId, clock, copy, make, save } from "./elements.js";
import { FORMATS, renamed, written } from "./formats.js";
import { JobList, nameJob, nameOf } from "./jobs.js";
import { askForKey, say, tell, unsay } from "./messages.js";
import { Player } from "./player.js";
import { Recorder } from "./recorder.js";
import { Search } from "./search.js";
import { SegmentList, colourOf } from "./segments.js";
import { Sender } from "./sending.js";
import { language, languageName, locale, setLanguage, t, translate } from "./words.js";

const LANGUAGES = ["de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "uk", "zh"];

const LOOKING_MS = 5000; // after scrolling, the page does not follow the playing word for this time

const audioOf = new Map(); // job id -> its File, as long as the page is open
let transcript = null;
let source = "talk.mp3"; // the file or URL that was sent last, for the commands
let opening = null; // the job whose transcript is being fetched; a later click replaces it
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
const jobs = new JobList({
  open,
  follow: (job) => {
    sender.running.begin(nameOf(job), { isUploaded: true });
    return sender.watch(job, nameOf(job));
  },
  deleted: (id) => {
    audioOf.delete(id);
    readyNotice(id)?.remove();
    if (transcript?.jobId !== id) return;
    byId("transcript").hidden = true;
    byId("audio").pause();
  },
  failed: tell,
});
const sender = new Sender(jobs, {
  options,
  sending: (sent) => {
    source = sent;
    showCommand();
  },
  accepted: (job, name, audio) => {
    nameJob(job.id, name);
    if (typeof audio !== "string") hold(job.id, audio);
    jobs.refresh();
  },
  succeeded: (job, name) => offer(name, () => open(job), job.id),
  answered: (answered, audio) => offer(answered.name, () => show(answered, audio)),
});
const recorder = new Recorder((file) => sender.take([file], { isRecording: true }));

/** Updates lanes, shares and the storage warning after a change to the transcript. */
function changed() {
  player.turns = transcript.turns();
  player.draw();
  player.describe();
  showShares();
  tellUnkept();
}

/** Warns the user when the browser cannot keep changes, and removes the warning when it can. */
function tellUnkept() {
  if (transcript.isKept) unsay("changes");
  else say(t("changes_not_kept"), "changes");
}

// --- The key ---

/** Fetches the list of jobs, which checks the key. With the right one it sends again what lacked a key. */
async function enter() {
  const isIn = await jobs.refresh();
  if (isIn) {
    forgetErased();
    sender.retry((error) => error.status === 401);
    if (byId("key").contains(document.activeElement)) byId("main").focus();
    byId("key").hidden = true;
    byId("key-field").value = "";
  }
  byId("key-show").hidden = !(isIn && key.get());
}

/** Removes from this browser what belongs to jobs that the server no longer has. */
async function forgetErased() {
  try {
    const listed = jobs.jobs.map(({ id }) => id);
    for (const id of new Set([...(await jobsWithAudio()), ...changedJobs()])) {
      const error = listed.includes(id) ? null : await json(`v1/jobs/${id}`).then(() => null, (refusal) => refusal);
      if (error?.code !== "job_not_found") continue;
      if (!key.get()) forgetChanges(id); // with a key, the job may belong to another key, and its changes must stay
      await forgetAudio(id);
    }
  } catch {
    // This browser has no storage, so there is nothing to remove.
  }
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

// --- Showing a transcript ---

/** Shows a finished transcript by `act`; while another one is open, shows a button for it instead. */
function offer(name, act, jobId = "") {
  if (byId("transcript").hidden && !opening) {
    byId("spoken").textContent = t("said_done", { name });
    return act();
  }
  const button = make("button", { type: "button", "aria-label": `${t("show")}: ${name}` }, t("show"));
  const notice = make("p", { class: "card", "data-job": jobId }, t("said_done", { name }), button);
  button.addEventListener("click", () => {
    notice.remove();
    act();
  });
  byId("ready").append(notice);
}

const readyNotice = (jobId) => byId("ready").querySelector(`[data-job="${jobId}"]`);

/** Opens the transcript of a job that has succeeded. */
async function open(job) {
  opening = job;
  readyNotice(job.id)?.remove();
  const result = (words) => json(`v1/jobs/${job.id}/result?response_format=json${words}`);
  let isTranslation = false;
  try {
    const answer = await result("&word_timestamps=true").catch((error) => {
      if (error.status !== 400) throw error;
      isTranslation = true; // a translation has no word times, so the server refuses to give them
      return result("");
    });
    if (opening !== job) return;
    opening = null;
    unsay("open");
    await show(new Transcript(answer, { jobId: job.id, name: nameOf(job), isTranslation }), audioOf.get(job.id) ?? null);
  } catch (error) {
    if (opening === job) opening = null;
    tell(error, "open");
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

/** Loads this audio into the player; without any, the audio that this browser has kept. */
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
  if (await segments.show(transcript)) search.run();
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
  tellUnkept();
});
byId("speakers").addEventListener("change", ({ target }) => (target.value = transcript.nameOf(target.dataset.speaker)));

byId("subtitles-form").addEventListener("submit", (event) => event.preventDefault());
byId("sub-width").addEventListener("input", ({ target }) => (byId("sub-count").disabled = !target.value));

byId("downloads").addEventListener("click", async ({ target }) => {
  const { format } = target.closest("button")?.dataset ?? {};
  if (!format) return;
  try {
    saveAs(await inFormat(format), format);
  } catch (error) {
    tell(error);
  }
});

/** The transcript in a format: the server's, unless the format shows something that the user has changed. */
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

/** The chosen layout of subtitles, as options of the API. */
function subtitleLayout() {
  if (transcript.isTranslation) return {};
  return Object.fromEntries([...new FormData(byId("subtitles-form"))].filter(([, value]) => value));
}

function saveAs(text, format) {
  const [end, type] = FORMATS[format];
  const name = transcript.name.replace(/\.\w{1,5}$/, "") || "transcript";
  save(new Blob([text], { type: `${type};charset=utf-8` }), `${name}.${end}`);
}

/** Copies text, and says in an element whether that worked. */
async function copyAndSay(text, output) {
  output.textContent = t((await copy(text)) ? "copied" : "not_copied");
}

byId("copy-text").addEventListener("click", () => copyAndSay(written(transcript, "text"), byId("text-copied")));

byId("shade").addEventListener("change", ({ target }) => byId("segments").classList.toggle("plain", !target.checked));
byId("attach").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (!file || !transcript) return;
  if (transcript.jobId) hold(transcript.jobId, file);
  listen(file);
});

// --- Files, addresses, the microphone ---

function take(files) {
  if (files.length) sender.take([...files]);
  else say(t("not_audio"));
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
addEventListener("beforeunload", (event) => (sender.isBusy || recorder.isOn) && event.preventDefault());
for (const name of ["wheel", "touchmove"]) addEventListener(name, () => (scrolledAt = Date.now()), { passive: true });
byId("url-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sender.take([byId("url").value.trim()]);
});

// --- Commands, keyboard, language ---

function showCommand() {
  const url = byId("url").value.trim();
  byId("command").textContent = command(byId("command-kind").value, url || source, options());
}

byId("copy-command").addEventListener("click", () => copyAndSay(byId("command").textContent, byId("copied")));
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

/** Shows texts that scripts have made in the chosen language; `translate` does so for those of the HTML. */
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
