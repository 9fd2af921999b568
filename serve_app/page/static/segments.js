/** The text of a transcript on the page: words to click, names, and editing in place. */
import { clock, make, pause } from "./elements.js";
import { t } from "./words.js";

const UNCERTAIN = 0.5; // a lower score shades the word, a much lower one more so
const VERY_UNCERTAIN = 0.3;
const SEGMENTS_AT_ONCE = 60; // after so many the page pauses to react to its user
const COLOURS = 8;
const NEW = " new"; // no id of a speaker begins with a space

/** The class that colours a speaker. */
export function colourOf(transcript, speaker) {
  const place = transcript.speakers.indexOf(speaker);
  return place < 0 ? "nobody" : `s${place % COLOURS}`;
}

export class SegmentList {
  /** `actions`: `play(timeS)`, `edited()`, and `moved()` when a segment was given to another speaker. */
  constructor(list, actions) {
    this.list = list;
    this.actions = actions;
    this.items = [];
    this.playing = [];
    this.shown = 0;
    list.addEventListener("click", (event) => this.#clicked(event));
    list.addEventListener("dblclick", (event) => this.#edit(event.target.closest("li")));
    list.addEventListener("keydown", (event) => this.#key(event));
    for (const name of ["focusin", "pointerdown"]) list.addEventListener(name, ({ target }) => this.#offerSpeakers(target));
    list.addEventListener("change", ({ target }) => target.matches(".speaker") && this.#move(target));
    list.addEventListener("focusout", (event) => event.target.isContentEditable && this.#stopEditing(event.target, true));
  }

  /** Shows a transcript, part by part. Gives false if another call has replaced it meanwhile. */
  async show(transcript) {
    const mine = ++this.shown;
    this.transcript = transcript;
    this.playing = [];
    this.items = [];
    this.list.replaceChildren();
    for (let index = 0; index < transcript.segments.length; index += SEGMENTS_AT_ONCE) {
      const some = transcript.segments.slice(index, index + SEGMENTS_AT_ONCE);
      const made = some.map((_, offset) => this.#item(index + offset));
      this.items.push(...made);
      this.list.append(...made);
      await pause();
      if (mine !== this.shown) return false;
    }
    this.marked = ""; // parts that were not there yet could not be marked
    return true;
  }

  /** Shows a speaker's new name wherever it stands. */
  showNames() {
    for (const option of this.list.querySelectorAll(".speaker option")) {
      if (option.value !== NEW) option.textContent = this.#nameOf(option.value);
    }
  }

  /** Marks the word that is heard, and brings it into view. */
  mark(timeS, isFollowed) {
    const place = this.transcript?.at(timeS) ?? null;
    if (String(place) === this.marked) return;
    this.marked = String(place);
    for (const element of this.playing) element.classList.remove("playing");
    const item = place && this.items[place[0]];
    if (!item) return;
    const word = place[1] === null ? null : item.querySelector(`[data-w="${place[1]}"]`);
    this.playing = [item, word].filter(Boolean);
    for (const element of this.playing) element.classList.add("playing");
    if (isFollowed && !this.list.querySelector("[contenteditable]")) bringIntoView(word ?? item);
  }

  #item(index) {
    const { start, speaker, text } = this.transcript.segments[index];
    const before = this.transcript.segments[index - 1];
    const isSame = before !== undefined && before.speaker === speaker;
    const edited = index in this.transcript.texts;
    return make(
      "li",
      { class: `segment ${colourOf(this.transcript, speaker)}${isSame ? " same" : ""}`, "data-i": String(index) },
      make("button", { type: "button", class: "time", "aria-label": t("play_from", { time: clock(start) }) }, clock(start)),
      make(
        "div",
        { class: "said" },
        ...(isSame || !this.transcript.speakers.length ? [] : [this.#speaker(index)]),
        this.#text(index, text, edited),
      ),
      make("button", { type: "button", class: "edit", "aria-label": t("edit"), title: t("edit") }, "✎"),
    );
  }

  #nameOf(speaker) {
    return this.transcript.nameOf(speaker) ?? t("speaker_unknown");
  }

  /** The list to choose a segment's speaker. It is filled when the user focuses it, because many full lists are slow. */
  #speaker(index) {
    const { speaker, start } = this.transcript.segments[index];
    const label = t("speaker_at", { time: clock(start) });
    return make(
      "select",
      { class: "speaker", "aria-label": label },
      make("option", { value: speaker ?? "" }, this.#nameOf(speaker)),
    );
  }

  #offerSpeakers(select) {
    if (!select.matches(".speaker")) return;
    const { value } = select;
    const ids = [...new Set([...this.transcript.speakers, value])];
    if (select.options.length === ids.length + 1) return; // it is filled already
    select.replaceChildren(
      ...ids.map((id) => make("option", { value: id, selected: id === value }, this.#nameOf(id))),
      make("option", { value: NEW }, t("speaker_new")),
    );
  }

  #move(select) {
    const index = Number(select.closest("li").dataset.i);
    this.transcript.move(index, select.value === NEW ? this.transcript.newSpeaker() : select.value);
    for (const changed of [index, index + 1]) {
      const before = this.items[changed];
      if (before) before.replaceWith((this.items[changed] = this.#item(changed)));
    }
    const item = this.items[index];
    if (!item.querySelector(".speaker")) item.querySelector(".said").prepend(this.#speaker(index));
    item.querySelector(".speaker").focus();
    this.marked = "";
    this.actions.moved();
  }

  #text(index, text, edited) {
    const { words } = this.transcript.segments[index];
    const shown = make("p", { class: edited ? "text edited" : "text", lang: this.transcript.language ?? "" });
    let at = 0;
    words.forEach(({ word, start, score }, place) => {
      const found = text.indexOf(word, at);
      if (found < 0) return;
      if (found > at) shown.append(text.slice(at, found));
      const uncertain = score === null || score >= UNCERTAIN ? "" : score >= VERY_UNCERTAIN ? "low" : "low very";
      shown.append(
        make(
          "span",
          {
            "data-w": String(place),
            class: `${start === null ? "" : "word"} ${uncertain}`.trim() || undefined,
            title: uncertain ? t("uncertain", { percent: Math.round(score * 100) }) : undefined,
          },
          word,
        ),
      );
      at = found + word.length;
    });
    shown.append(text.slice(at));
    return shown;
  }

  #clicked(event) {
    const item = event.target.closest("li");
    if (!item || event.target.closest("[contenteditable]")) return;
    const segment = this.transcript.segments[Number(item.dataset.i)];
    const word = event.target.closest("[data-w]");
    if (event.target.closest(".edit")) this.#edit(item);
    else if (event.target.closest(".time")) this.actions.play(segment.start);
    else if (word && getSelection().isCollapsed) this.actions.play(segment.words[Number(word.dataset.w)].start ?? segment.start);
  }

  #edit(item) {
    const text = item?.querySelector(".text");
    if (!text || text.isContentEditable) return;
    const index = Number(item.dataset.i);
    if (this.transcript.speakers.length && !item.querySelector(".speaker")) text.before(this.#speaker(index));
    text.textContent = this.transcript.segments[index].text; // without its spans
    text.contentEditable = "plaintext-only";
    text.setAttribute("role", "textbox");
    text.setAttribute("aria-label", t("edit_label"));
    text.focus();
    getSelection().selectAllChildren(text);
    getSelection().collapseToEnd();
  }

  #key(event) {
    if (!event.target.isContentEditable || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    const item = event.target.closest("li");
    this.#stopEditing(event.target, event.key === "Enter");
    item.querySelector(".edit").focus();
  }

  #stopEditing(element, isSaved) {
    if (!element.isContentEditable) return;
    element.contentEditable = "false"; // else removing it would end the editing once more
    const item = element.closest("li");
    const index = Number(item.dataset.i);
    const text = element.textContent.replace(/\s+/g, " ").trim();
    if (isSaved && text !== this.transcript.segments[index].text) {
      this.transcript.edit(index, text);
      this.actions.edited();
    }
    this.marked = "";
    element.replaceWith(this.#text(index, this.transcript.segments[index].text, index in this.transcript.texts));
  }
}

/** Scrolls to an element unless it is well within view. */
export function bringIntoView(element) {
  const { top, bottom } = element.getBoundingClientRect();
  const covered = document.getElementById("player").getBoundingClientRect().bottom;
  if (top > Math.max(covered, 0) + 10 && bottom < innerHeight - 60) return;
  const isFar = top < -innerHeight || bottom > 2 * innerHeight;
  const isCalm = isFar || matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block: "center", behavior: isCalm ? "auto" : "smooth" });
}
