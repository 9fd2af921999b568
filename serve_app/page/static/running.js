/** A job that runs: its stages with a bar each, and the text as far as it is known. */
import { byId, clock, make } from "./elements.js";
import { t } from "./words.js";

const STAGES = ["upload", "queue", "speech", "text", "finish"];

export class Running {
  constructor() {
    this.section = byId("running");
  }

  /** Shows a new job; `isUploaded` where its audio is with the server already. */
  begin(name, { isUploaded = false } = {}) {
    this.name = name;
    this.said = "";
    this.state = { upload: isUploaded ? 1 : 0 };
    this.details = {};
    this.section.hidden = false;
    byId("running-title").textContent = name;
    byId("live").replaceChildren();
    byId("live").hidden = true;
    byId("running-cancel").disabled = false;
    this.#show();
  }

  /** How much of the upload is sent, from 0 to 1. */
  sent(part) {
    this.state.upload = part;
    this.details.upload = `${Math.round(part * 100)} %`;
    this.#show();
  }

  /** Shows what the server says about the job. */
  show(job) {
    const { status, progress } = job;
    this.state.upload = 1;
    delete this.details.upload;
    if (status === "queued") {
      this.state.queue = null;
      this.details.queue = job.jobs_ahead === undefined ? "" : job.jobs_ahead ? t("ahead", { n: job.jobs_ahead }) : t("next_up");
    } else {
      this.state.queue = 1;
      delete this.details.queue;
      const { windows_done: done = 0, windows_found: found = 0, all_found: all = false } = progress ?? {};
      const isOver = status === "succeeded";
      this.state.speech = all || isOver ? 1 : null;
      this.details.speech = found ? t("windows_found", { n: found }) : "";
      this.state.text = isOver ? 1 : all ? done / Math.max(1, found) : done ? null : undefined;
      this.details.text = found ? t("windows_done", { done, found }) : "";
      if (isOver) this.state.finish = 1;
      else if (all && done >= found) this.state.finish = null;
      if (job.canceling) this.details.finish = t("canceling");
    }
    byId("running-cancel").disabled = job.canceling;
    this.#show();
  }

  /** Adds text that has become final. Another attempt, or another connection, begins again. */
  add({ attempt, first, segments: piece }) {
    const live = byId("live");
    live.hidden = false;
    if (attempt !== this.attempt) live.replaceChildren();
    this.attempt = attempt;
    const segments = piece.slice(Math.max(0, live.children.length - first));
    const isAtEnd = live.scrollHeight - live.scrollTop - live.clientHeight < 40;
    live.append(
      ...segments.map(({ start, text }) => make("p", {}, make("span", { class: "time" }, clock(start)), " ", text)),
    );
    if (isAtEnd) live.scrollTop = live.scrollHeight;
  }

  end() {
    this.section.hidden = true;
  }

  /** A bar is at 1 when its stage is done, between 0 and 1 or null while it runs, and undefined before. */
  #show() {
    const items = STAGES.map((stage) => {
      const part = this.state[stage];
      const state = part === undefined ? "todo" : part === 1 ? "done" : "now";
      const label = t(`stage_${stage}`);
      const bar = make("progress", { max: "1", value: part === null ? undefined : String(part ?? 0), "aria-label": label });
      const detail = [this.details[stage], this.details[stage] ? "" : t(`state_${state}`)].filter(Boolean).join(" ");
      return make("li", { class: state }, make("span", { class: "name" }, label), bar, make("span", { class: "detail" }, detail));
    });
    const list = byId("stages");
    // Replacing bars that stay would begin their animation again and again.
    items.forEach((item, place) => {
      if (!list.children[place]) list.append(item);
      else if (list.children[place].outerHTML !== item.outerHTML) list.children[place].replaceWith(item);
    });
    this.#say();
  }

  /** Tells screen readers each stage, and its progress in steps of a quarter. */
  #say() {
    const stage = STAGES.findLast((each) => this.state[each] !== undefined && this.state[each] !== 1);
    if (!stage) return;
    const percent = Math.floor((this.state[stage] ?? 0) * 4) * 25;
    const values = { name: this.name, stage: t(`stage_${stage}`), percent };
    const said = percent ? t("said_progress", values) : t("said_stage", values);
    if (said !== this.said) byId("spoken").textContent = this.said = said;
  }
}
