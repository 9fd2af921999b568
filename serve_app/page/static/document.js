/** A transcript as the user sees it: the server's, with the user's names and texts. */
import { keep, kept } from "./elements.js";
import { retimed } from "./retime.js";

export class Transcript {
  /** `answer` is the JSON of `/predict`; names and texts are kept under the job's id, if there is one. */
  constructor(answer, { jobId = null, name = "" } = {}) {
    this.answer = answer;
    this.jobId = jobId;
    this.name = name;
    this.language = answer.language;
    this.durationS = answer.duration;
    const changes = jobId ? kept(`changes.${jobId}`, {}) : {};
    this.names = changes.names ?? {};
    this.texts = changes.texts ?? {};
    this.segments = answer.model_output.map((segment, index) => this.#segment(segment, index));
    this.speakers = [...new Set(answer.model_output.map((segment) => segment.speaker).filter(Boolean))];
    this.#index();
  }

  /** The name of a speaker, as the user wants it. */
  nameOf(speaker) {
    return speaker ? this.names[speaker] || speaker : null;
  }

  get isChanged() {
    return Object.keys(this.names).length > 0 || this.isEdited;
  }

  get isEdited() {
    return Object.keys(this.texts).length > 0;
  }

  /** Gives a speaker another name; an empty one is the server's. */
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

  /** Stretches of one speaker, `{start, end, speaker}`, and how long each one speaks. */
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
    const text = (this.texts[index] ?? segment.text).trim();
    const words = segment.words ?? [];
    return { ...segment, text, words: index in this.texts ? retimed(text, words, segment, this.answer.language) : words };
  }

  /** What `at` searches: when each word begins, or a segment that has no timed words. */
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
    if (this.jobId) keep(`changes.${this.jobId}`, this.isChanged ? { names: this.names, texts: this.texts } : undefined);
  }
}
