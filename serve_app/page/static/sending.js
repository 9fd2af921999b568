/** Sending audio to the server, following its job, and keeping audio that could not be sent. */
import { ApiError, follow, request, send } from "./api.js";
import { Transcript } from "./document.js";
import { byId, make, save } from "./elements.js";
import { askForKey, reasonOf, say, tell, unsay } from "./messages.js";
import { Running } from "./running.js";
import { explain, t } from "./words.js";

const ALIKE = [401, 403, 429, 503]; // the server would refuse the next file for the same reason

const nameFrom = (audio) => (typeof audio === "string" ? audio.split(/[?#]/)[0].split("/").filter(Boolean).at(-1) : audio.name);

export class Sender {
  /**
   * `jobs` is the list of jobs. `actions`: `options()`, `sending(source)`, `accepted(job, name, audio)`,
   * `succeeded(job, name)`, and `answered(transcript, audio)` where the server keeps no jobs.
   */
  constructor(jobs, actions) {
    this.jobs = jobs;
    this.actions = actions;
    this.running = new Running();
    this.uploads = new Set(); // an AbortController for each running upload
    this.unsent = []; // {audio, error, why}
    this.recordings = new Set(); // recordings that are neither sent nor saved
    this.followed = null; // the AbortController of the job that is followed
    this.shownNumber = 0; // counts what was shown as running; an upload with an older number goes on unseen
  }

  /** Whether closing the page now would lose an upload or a recording. */
  get isBusy() {
    return this.uploads.size > 0 || this.recordings.size > 0;
  }

  /** Sends Files or URLs, one after the other, and shows the first one. The user can retry those that are refused. */
  async take(audios, { isRecording = false } = {}) {
    if (!this.uploads.size) say("");
    if (isRecording) for (const audio of audios) this.recordings.add(audio);
    let refusal = null;
    for (const [place, audio] of audios.entries()) {
      const error = refusal ?? (await this.#send(audio, place === 0));
      if (!error) continue;
      if (ALIKE.includes(error.status)) refusal = error;
      if (error.status === 401) askForKey();
      this.unsent.push({ audio, error, why: reasonOf(error) });
      this.#showUnsent();
    }
  }

  /** Sends refused audio again: all of it, or that whose error `isWanted` accepts. */
  retry(isWanted = () => true) {
    const again = this.unsent.filter(({ error }) => isWanted(error));
    if (!again.length) return;
    this.unsent = this.unsent.filter((each) => !again.includes(each));
    this.#showUnsent();
    this.take(again.map(({ audio }) => audio));
  }

  /** Sends one File or URL. Gives the error if it was not sent. */
  async #send(audio, isShown) {
    if (this.jobs.areOff && (!isShown || this.uploads.size)) return new ApiError(0, { code: "one_at_a_time" });
    const name = nameFrom(audio);
    const options = this.actions.options();
    const sending = new AbortController();
    const number = isShown ? ++this.shownNumber : -1;
    const isVisible = () => number === this.shownNumber;
    const post = (path, fields) => send(path, audio, fields, (part) => isVisible() && this.running.sent(part), sending.signal);
    this.actions.sending(typeof audio === "string" ? audio : name);
    if (isShown) {
      this.followed?.abort();
      this.running.begin(name);
      byId("running-cancel").onclick = () => sending.abort();
    }
    this.uploads.add(sending);
    try {
      const job = this.jobs.areOff ? null : await post("v1/jobs", options);
      if (!job) await this.#sendAtOnce(audio, name, options, post);
      else {
        this.actions.accepted(job, name, audio);
        if (isVisible()) this.watch(job, name);
      }
      this.recordings.delete(audio);
      return null;
    } catch (error) {
      if (isVisible()) this.running.end();
      if (error.code === "jobs_off") {
        this.jobs.areOff = true;
        this.uploads.delete(sending);
        return await this.#send(audio, isShown);
      }
      if (error.name !== "AbortError") return error;
      return this.recordings.has(audio) ? new ApiError(0, { code: "upload_canceled" }) : null;
    } finally {
      this.uploads.delete(sending);
    }
  }

  /** Transcribes in one long request, for a server that keeps no jobs. */
  async #sendAtOnce(audio, name, options, post) {
    const isTranslation = options.task === "translate";
    say(t("error_jobs_off"), "at once");
    try {
      const answer = await post("predict", { ...options, ...(isTranslation ? {} : { word_timestamps: "true" }) });
      this.running.end();
      this.actions.answered(new Transcript(answer, { name, isTranslation }), typeof audio === "string" ? null : audio);
    } finally {
      unsay("at once");
    }
  }

  #showUnsent() {
    const namesOf = new Map();
    for (const { audio, why } of this.unsent) namesOf.set(why, [...(namesOf.get(why) ?? []), nameFrom(audio)]);
    const button = (label, act) => {
      const made = make("button", { type: "button" }, label);
      made.addEventListener("click", act);
      return made;
    };
    const saved = (audio) => () => {
      save(audio, audio.name);
      this.recordings.delete(audio);
    };
    const recordings = this.unsent.map(({ audio }) => audio).filter((audio) => this.recordings.has(audio));
    byId("unsent").replaceChildren(
      ...[...namesOf].map(([why, names]) => make("p", {}, `${names.join(", ")}: ${why}`)),
      ...(this.unsent.length ? [button(t("retry"), () => this.retry())] : []),
      ...recordings.map((audio) => button(t("save_recording", { name: audio.name }), saved(audio))),
      ...(this.unsent.length ? [button(t("discard"), () => this.#discard())] : []),
    );
  }

  #discard() {
    for (const { audio } of this.unsent) this.recordings.delete(audio);
    this.unsent = [];
    this.#showUnsent();
  }

  /** Follows a job to its end. */
  async watch(job, name) {
    this.followed?.abort();
    const ending = (this.followed = new AbortController());
    this.shownNumber++;
    byId("running-cancel").onclick = async () => {
      await request(`v1/jobs/${job.id}/cancel`, { method: "POST" }).catch(tell);
      this.jobs.refresh();
    };
    let last = job;
    this.running.show(job);
    try {
      await follow(
        job.id,
        (event, data) => {
          if (event === "segments") {
            this.running.add(data);
            return;
          }
          if (data.status !== last.status) this.jobs.refresh();
          this.running.show((last = data));
        },
        ending.signal,
      );
      this.running.end();
      if (last.status === "succeeded") await this.actions.succeeded(last, name);
      else if (last.status === "failed") say(explain({ status: null, ...last.error }) || t("status_failed"));
      else if (last.status === "canceled" || last.status === "expired") say(t(`job_${last.status}`));
    } catch (error) {
      if (error.name !== "AbortError") this.running.end();
      tell(error);
    }
  }
}
