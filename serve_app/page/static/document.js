/** A transcript as the user sees it: the server's, with the user's names, texts and speakers. */
import { address } from "./api.js";
import { keep, kept } from "./elements.js";
import { retimed } from "./retime.js";

// Services behind two prefixes of one host share the browser's storage.
const placeOf = (jobId) => `changes.${address(jobId)}`;

/** Removes the changes to a job's transcript from this browser. */
export const forgetChanges = (jobId) => keep(placeOf(jobId), undefined);

/** The ids of jobs whose transcripts were changed in this browser. */
export function changedJobs() {
  const start = `whisperx.${placeOf("")}`;
  return Object.keys(localStorage).filter((name) => name.startsWith(start)).map((name) => name.slice(start.length));
}

export class Transcript {
  /** `answer` is the JSON of `/predict`; changes are kept under the job's id, if there is one. */
  constructor(answer, { jobId = null, name = "", isTranslation = false } = {}) {
    this.answer = answer;
    this.jobId = jobId;
    this.name = name;
    this.isTranslation = isTranslation;
    this.language = answer.language;
    this.durationS = answer.duration;
    const changes = jobId ? kept(placeOf(jobId), {}) : {};
    this.isKept = true; // whether the browser has room for the changes
    this.names = changes.names ?? {};
    this.texts = changes.texts ?? {};
    this.moved = changes.moved ?? {}; // by segment, the speaker to whom the user gave it
    this.segments = answer.model_output.map((segment, index) => this.#segment(segment, index));
    const spoken = answer.model_output.flatMap(({ speaker, words }) => [speaker, ...(words ?? []).map((word) => word.speaker)]);
    this.speakers = [...new Set([...spoken, ...Object.values(this.moved)].filter(Boolean))];
    this.#index();
  }

  /** The name of a speaker, as the user wants it. */
  nameOf(speaker) {
    return speaker ? this.names[speaker] || speaker : null;
  }

  get isChanged() {
    return Object.keys(this.names).length > 0 || this.isEdited;
  }

  /** Whether the user has changed more than names. */
  get isEdited() {
    return [this.texts, this.moved].some((changes) => Object.keys(changes).length > 0);
  }

  /** Gives a speaker another name; an empty one restores the server's. */
  rename(speaker, name) {
    if (name.trim() && name.trim() !== speaker) this.names[speaker] = name.trim();
    else delete this.names[speaker];
    this.#keep();
  }

  /** Replaces the text of a segment. Words that stay keep their times. */
  edit(index, text) {
    const segment = this.answer.model_output[index];
    if (text === segment.text.trim()) delete this.texts[index];
    else this.texts[index] = text;
    this.segments[index] = this.#segment(segment, index);
    this.#index();
    this.#keep();
  }

  /** Gives a segment to another speaker. */
  move(index, speaker) {
    const segment = this.answer.model_output[index];
    if (speaker === segment.speaker) delete this.moved[index];
    else this.moved[index] = speaker;
    if (!this.speakers.includes(speaker)) this.speakers.push(speaker);
    this.segments[index] = this.#segment(segment, index);
    this.#keep();
  }

  /** An id for one more speaker. */
  newSpeaker() {
    const ids = Array.from({ length: this.speakers.length + 1 }, (_, number) => `SPEAKER_${String(number).padStart(2, "0")}`);
    return ids.find((id) => !this.speakers.includes(id));
  }

  /** The stretches of time that the user gave to another speaker. */
  moves() {
    return Object.entries(this.moved).map(([index, to]) => {
      const { start, end } = this.segments[index];
      return { start, end, from: this.answer.model_output[index].speaker, to };
    });
  }

  /** The segment and the word that are heard at this time: `[segment, word]`, or null before the first. */
  at(timeS) {
    let low = 0;
    let high = this.wordStarts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.wordStarts[middle] <= timeS) low = middle + 1;
      else high = middle;
    }
    return low ? this.places[low - 1] : null;
  }

  /** The speaker turns: `{start, end, speaker}`. */
  turns() {
    const turns = [];
    for (const { start, end, speaker, words } of this.segments) {
      const parts = words.filter((word) => word.start !== null && word.end !== null);
      for (const part of parts.length ? parts : [{ start, end, speaker }]) {
        const who = part.speaker ?? speaker;
        const last = turns.at(-1);
        if (last && last.speaker === who && part.start - last.end < 1) last.end = Math.max(last.end, part.end);
        else turns.push({ start: part.start, end: part.end, speaker: who });
      }
    }
    return turns;
  }

  #segment(segment, index) {
    const speaker = this.moved[index] ?? segment.speaker;
    const text = (this.texts[index] ?? segment.text).trim();
    const before = segment.words ?? [];
    const words = index in this.texts ? retimed(text, before, segment, this.answer.language) : before;
    return { ...segment, speaker, text, words: index in this.moved ? words.map((word) => ({ ...word, speaker })) : words };
  }

  /** Lists when each word begins, for `at`; of a segment without timed words, when the segment begins. */
  #index() {
    const found = [];
    this.segments.forEach(({ start, words }, segment) => {
      const before = found.length;
      words.forEach((word, place) => word.start !== null && found.push([word.start, [segment, place]]));
      if (found.length === before) found.push([start, [segment, null]]);
    });
    found.sort((one, other) => one[0] - other[0]);
    this.wordStarts = Float64Array.from(found, ([start]) => start);
    this.places = found.map(([, place]) => place);
  }

  #keep() {
    if (!this.jobId) return;
    const { names, texts, moved } = this;
    this.isKept = keep(placeOf(this.jobId), this.isChanged ? { names, texts, moved } : undefined);
  }
}
