/** The subtitles of an edited transcript. `serve_app/formats/subtitles.py` lays out unedited ones. */
import { timed } from "./retime.js";

// Line ends of any kind, other control characters and lone surrogates.
const CONTROL = /[\x00-\x1f\x7f-\x9f\u2028\u2029\p{Cs}]+/gu;
export const oneLine = (text) => text.replace(CONTROL, " ").trim();
export const milliseconds = (seconds) => Math.round(seconds * 1000);
const joined = (words) => words.map(({ text, hasSpace }, place) => (hasSpace && place ? " " : "") + text).join("");

/**
 * The cues, in milliseconds: one for each segment, or several if it has more than `max_line_count` lines. `escaped`
 * is applied to each word.
 */
export function cues(transcript, layout, escaped = (text) => text) {
  const { max_line_width: width = 1000, max_line_count: count = Infinity, highlight_words: isHighlighted = false } = layout;
  return transcript.segments.flatMap((segment) => {
    const speaker = transcript.nameOf(segment.speaker);
    const lines = linesOf(wordsOf(segment, transcript.language), Number(width));
    const found = [];
    for (let at = 0; at < lines.length; at += Number(count)) {
      const shown = lines.slice(at, at + Number(count));
      const begun = shown.flat().filter((word) => word.start !== null);
      const start = milliseconds(begun.length ? Math.min(...begun.map((word) => word.start)) : segment.start);
      const end = milliseconds(begun.length ? Math.max(...begun.map((word) => word.end ?? word.start)) : segment.end);
      const textWith = (marked) => {
        const inLine = (line) => joined(line.map((word) => ({ ...word, text: mark(escaped(word.text), word === marked) })));
        return shown.map(inLine).join("\n");
      };
      if (isHighlighted && begun.length && segment.words.some((word) => word.start !== null)) found.push(...highlighted(begun, start, textWith));
      else found.push({ start, end: Math.max(end, start + 1), text: textWith(null) });
    }
    return found.map((cue) => ({ ...cue, speaker }));
  });
}

const mark = (text, isMarked) => (isMarked ? `<u>${text}</u>` : text);

/** A cue for each word, and for each gap before one. */
function highlighted(words, startMs, textWith) {
  let before = startMs;
  return words.flatMap((word) => {
    const start = milliseconds(word.start);
    const end = Math.max(milliseconds(word.end ?? word.start), start + 1);
    const gap = start > before ? [{ start: before, end: start, text: textWith(null) }] : [];
    before = end;
    return [...gap, { start, end, text: textWith(word) }];
  });
}

/** The words of a segment, and whether a space is before each in its text. If none has times, they share the segment's. */
function wordsOf(segment, language) {
  let at = 0;
  const words = timed(segment, language).map((word) => {
    const found = segment.text.indexOf(word.word, at);
    const hasSpace = found < 0 || /\s/.test(segment.text.slice(at, found));
    if (found >= 0) at = found + word.word.length;
    return { ...word, text: oneLine(word.word), hasSpace };
  });
  return words.filter(({ text }) => text);
}

/** Fills lines with as many words as fit. Punctuation without a space before it begins no line. */
function linesOf(words, width) {
  const units = [];
  for (const word of words) {
    if (units.length && !word.hasSpace && /^[\p{P}\p{M}]/u.test(word.text)) units.at(-1).push(word);
    else units.push([word]);
  }
  const lines = [];
  for (const unit of units) {
    const longer = [...(lines.at(-1) ?? []), ...unit];
    if (lines.length && [...joined(longer)].length <= width) lines[lines.length - 1] = longer;
    else lines.push(unit);
  }
  return lines;
}
