/** The list of recent jobs. The server does not know the names of uploads, so this browser keeps them. */
import { json, request } from "./api.js";
import { forgetAudio } from "./audio.js";
import { forgetChanges } from "./document.js";
import { byId, keep, kept, make } from "./elements.js";
import { explain, locale, t } from "./words.js";

const POLL_MS = 4000; // while something waits or runs
const MAX_NAMES = 200;
const PAGE = 20; // jobs that are shown at first, and added by each click on "More"
const MAX_PAGE = 100; // the API's limit

/** Keeps the name of a job's audio. */
export function nameJob(id, name) {
  keep("names", Object.fromEntries([...Object.entries(kept("names", {})), [id, name]].slice(-MAX_NAMES)));
}

/** What to call a job. */
export function nameOf(job) {
  const known = kept("names", {})[job.id];
  if (known) return known;
  if (!job.audio || job.audio === "upload") return `${t("upload")} ${job.id.slice(-6)}`;
  return decoded(job.audio.split("/").filter(Boolean).at(-1)) || job.audio;
}

export class JobList {
  /** `actions`: `open(job)`, `follow(job)`, `deleted(id)`, `failed(error)`. */
  constructor(actions) {
    this.actions = actions;
    this.jobs = [];
    this.wanted = PAGE;
    this.areOff = false; // whether the server keeps no jobs
    byId("refresh").addEventListener("click", () => this.refresh());
    byId("more-jobs").addEventListener("click", () => {
      this.wanted += PAGE;
      this.refresh();
    });
    byId("jobs").addEventListener("click", (event) => this.#clicked(event.target.closest("button")));
    document.addEventListener("visibilitychange", () => !document.hidden && this.jobs.length && this.refresh());
  }

  /** Fetches the list again. Gives false if that failed; then `actions.failed` has the error. */
  async refresh() {
    clearTimeout(this.timer);
    try {
      const found = { jobs: [], next: null };
      do {
        const page = await list(found.next, Math.min(this.wanted - found.jobs.length, MAX_PAGE));
        found.jobs.push(...page.jobs);
        found.next = page.next;
      } while (found.next && found.jobs.length < this.wanted);
      Object.assign(this, found, { areOff: false });
    } catch (error) {
      if (error.status) this.jobs = [];
      this.areOff = error.code === "jobs_off";
      this.show();
      this.actions.failed(error);
      return this.areOff;
    }
    this.show();
    const isBusy = this.jobs.some((job) => ["queued", "running"].includes(job.status));
    if (isBusy && !document.hidden) this.timer = setTimeout(() => this.refresh(), POLL_MS);
    return true;
  }

  show() {
    const focused = document.activeElement?.dataset?.key;
    byId("no-jobs").hidden = this.jobs.length > 0;
    byId("more-jobs").hidden = !this.next;
    byId("jobs").replaceChildren(...this.jobs.map((job) => item(job, job.id === this.doomed)));
    if (focused) byId("jobs").querySelector(`[data-key="${focused}"]`)?.focus();
  }

  async #clicked(button) {
    if (!button) return;
    const job = this.jobs.find((each) => each.id === button.dataset.job);
    const { action } = button.dataset;
    try {
      if (action === "open") await this.actions.open(job);
      else if (action === "follow") await this.actions.follow(job);
      else if (action === "cancel") await request(`v1/jobs/${job.id}/cancel`, { method: "POST" });
      else if (this.doomed === job.id) {
        await request(`v1/jobs/${job.id}`, { method: "DELETE" });
        forgetChanges(job.id);
        await forgetAudio(job.id);
        this.actions.deleted(job.id);
      } else {
        this.doomed = job.id;
        this.show();
        return;
      }
    } catch (error) {
      this.actions.failed(error);
    }
    if (action !== "open" && action !== "follow") await this.refresh();
  }
}

/** A page of jobs. A server that is open without keys lists none; then, the jobs that this browser has sent. */
async function list(after, limit) {
  try {
    return await json(`v1/jobs?limit=${limit}${after ? `&after=${after}` : ""}`);
  } catch (error) {
    if (error.status !== 403) throw error;
    await json("v1/models").catch(() => Promise.reject(error)); // this is refused too, so the server refuses this machine
    const ids = Object.keys(kept("names", {})).slice(-PAGE).reverse();
    const jobs = await Promise.all(ids.map((id) => json(`v1/jobs/${id}`).catch(() => null)));
    return { jobs: jobs.filter(Boolean), next: null };
  }
}

function item(job, isDoomed) {
  const name = nameOf(job);
  const isOver = !["queued", "running"].includes(job.status);
  const { windows_done: done, windows_found: found } = job.progress ?? {};
  const state = t(`status_${job.status}`) + (found ? ` ${Math.round((100 * done) / found)} %` : "");
  const button = (action) => {
    const word = t(action === "delete" && isDoomed ? "delete_sure" : WORD_OF[action]);
    const data = { "data-action": action, "data-job": job.id, "data-key": `${action}-${job.id}` };
    return make("button", { type: "button", ...data, "aria-label": `${word}: ${name}` }, word);
  };
  const actions = isOver ? [...(job.status === "succeeded" ? ["open"] : []), "delete"] : ["follow", "cancel"];
  return make(
    "li",
    {},
    make("span", { class: "name", title: job.audio ?? "" }, name),
    make("span", { class: `state ${job.status}` }, state),
    make("span", { class: "note" }, new Date(job.created_at).toLocaleString(locale(), { dateStyle: "short", timeStyle: "short" })),
    make("span", { class: "row" }, ...actions.map(button)),
    ...(job.status === "failed" ? [make("span", { class: "why" }, explain(job.error ?? {}))] : []),
  );
}

const WORD_OF = { open: "open", follow: "follow_job", cancel: "cancel", delete: "delete" };

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
