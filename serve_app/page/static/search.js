/** Searching the text of a transcript. Matches are highlighted without changing the page's elements. */
import { byId } from "./elements.js";
import { bringIntoView } from "./segments.js";
import { t } from "./words.js";

const MAX_SHOWN = 1000; // matches that are coloured; all of them are counted and can be visited
const WAIT_MS = 150;

export class Search {
  constructor(segments) {
    this.segments = segments;
    this.matches = [];
    this.at = -1;
    byId("find").addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.run(), WAIT_MS);
    });
    byId("find").addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      if (this.asked !== byId("find").value) this.run();
      else this.go(event.shiftKey ? -1 : 1);
    });
    byId("find-next").addEventListener("click", () => this.go(1));
    byId("find-back").addEventListener("click", () => this.go(-1));
  }

  /** Searches for what the field says, and goes to the first match. */
  run() {
    clearTimeout(this.timer);
    this.asked = byId("find").value;
    const wanted = this.asked.trim().toLowerCase();
    this.matches = [];
    this.at = -1;
    if (wanted) {
      (this.segments.transcript?.segments ?? []).forEach(({ text }, segment) => {
        const lower = text.toLowerCase();
        for (let start = lower.indexOf(wanted); start >= 0; start = lower.indexOf(wanted, start + wanted.length)) {
          this.matches.push({ segment, start, end: start + wanted.length });
        }
      });
    }
    CSS.highlights?.set("found", new Highlight(...this.matches.slice(0, MAX_SHOWN).map((match) => this.#range(match)).filter(Boolean)));
    CSS.highlights?.delete("found-now");
    this.#count();
    if (this.matches.length) this.go(1);
  }

  /** Goes to the next match, or with -1 to the one before. */
  go(step) {
    const { length } = this.matches;
    if (!length) return;
    this.at = (this.at + step + length) % length;
    const match = this.matches[this.at];
    const range = this.#range(match);
    if (range) CSS.highlights?.set("found-now", new Highlight(range));
    const item = this.segments.items[match.segment];
    if (item) bringIntoView(item);
    this.#count();
  }

  #count() {
    const { length } = this.matches;
    byId("found").textContent = !this.asked?.trim() ? "" : length ? t("found", { at: this.at + 1 || 1, n: length }) : t("found_none");
    byId("find-back").disabled = byId("find-next").disabled = !length;
  }

  #range({ segment, start, end }) {
    const text = this.segments.items[segment]?.querySelector(".text");
    if (!text) return null; // it is not on the page yet
    const range = new Range();
    const nodes = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
    let passed = 0;
    for (let node = nodes.nextNode(); node; node = nodes.nextNode()) {
      const { length } = node;
      if (start >= passed && start < passed + length) range.setStart(node, start - passed);
      if (end > passed && end <= passed + length) {
        range.setEnd(node, end - passed);
        return range;
      }
      passed += length;
    }
    return null;
  }
}
