/** The writers of an edited transcript; the layout is that of `serve_app/formats`, which writes all others. */

import { retimed } from "./retime.js";

/** Formats by name: the end of the file's name, and its type. */
export const FORMATS = {
  srt: ["srt", "application/x-subrip"],
  vtt: ["vtt", "text/vtt"],
  text: ["txt", "text/plain"],
  json: ["json", "application/json"],
  words: ["words.json", "application/json"],
  tsv: ["tsv", "text/tab-separated-values"],
  rttm: ["rttm", "text/plain"],
};

// Line ends of any kind, other control characters and lone surrogates.
const CONTROL = /[\x00-\x1f\x7f-\x9f\u2028\u2029\p{Cs}]+/gu;
const oneLine = (text) => text.replace(CONTROL, " ").trim();
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const milliseconds = (seconds) => Math.round(seconds * 1000);

/** The transcript in a format. `rttm` needs the server's, whose names it replaces. */
export function written(transcript, format, serversRttm = "") {
  return WRITERS[format](transcript, serversRttm);
}

const WRITERS = {
  srt: (transcript) =>
    cues(transcript)
      .map(({ start, end, text, speaker }, index) => {
        const line = (prefix(speaker) + text).replace(/-{2,}>/g, "->");
        return `${index + 1}\n${clock(start, ",")} --> ${clock(end, ",")}\n${line}\n\n`;
      })
      .join(""),
  vtt: (transcript) =>
    ["WEBVTT\n\n"]
      .concat(
        cues(transcript).map(({ start, end, text, speaker }) => {
          const [from, to] = [start, end].map((at) => clock(at, ".").replace(/^00:(?=\d\d:)/, ""));
          const voice = speaker ? `<v ${escaped(oneLine(speaker))}>` : "";
          return `${from} --> ${to}\n${voice}${escaped(text)}\n\n`;
        }),
      )
      .join(""),
  text: (transcript) =>
    transcript.segments.map(({ text, speaker }) => `${prefix(transcript.nameOf(speaker))}${oneLine(text)}\n`).join(""),
  tsv: ({ segments }) =>
    "start\tend\ttext\n" +
    segments.map(({ start, end, text }) => `${milliseconds(start)}\t${milliseconds(end)}\t${oneLine(text)}\n`).join(""),
  json: (transcript) => {
    const model_output = transcript.segments.map((segment) => {
      const words = segment.words.map((word) => named(transcript, word));
      return named(transcript, words.length ? { ...segment, words } : segment);
    });
    return JSON.stringify({ ...transcript.answer, model_output }, null, 2);
  },
  words: (transcript) => {
    const { model_output, ...about } = transcript.answer;
    const words = transcript.segments.flatMap((segment) => wordsOf(transcript, segment));
    return JSON.stringify({ words, ...about }, null, 2);
  },
  rttm: (transcript, servers) =>
    servers.replace(/^(SPEAKER(?: \S+){6} )(\S+)/gm, (_, begin, speaker) => {
      return begin + oneLine(transcript.nameOf(speaker)).replace(/\s/g, "_");
    }),
};

const named = (transcript, part) => ({ ...part, speaker: transcript.nameOf(part.speaker) });
const wordsOf = (transcript, segment) => {
  // Of a segment that was not aligned, the words have no times.
  const words = segment.words.length ? segment.words : retimed(segment.text, [], segment, transcript.language);
  return words.map((word) => named(transcript, word));
};
const prefix = (speaker) => (speaker ? `[${oneLine(speaker)}]: ` : "");

/** One cue for each segment that has text: from its first word to its last. */
function cues(transcript) {
  return transcript.segments.flatMap(({ start, end, text, speaker, words }) => {
    const timed = words.filter((word) => word.start !== null);
    const from = milliseconds(timed.length ? Math.min(...timed.map((word) => word.start)) : start);
    const to = milliseconds(timed.length ? Math.max(...timed.map((word) => word.end ?? word.start)) : end);
    const shown = oneLine(text).replace(/ {2,}/g, " ");
    return shown ? [{ start: from, end: Math.max(to, from + 1), text: shown, speaker: transcript.nameOf(speaker) }] : [];
  });
}

function clock(ms, point) {
  const two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(ms / 60000);
  const rest = ms % 60000;
  const seconds = `${two(Math.floor(rest / 1000))}${point}${String(rest % 1000).padStart(3, "0")}`;
  return `${two(Math.floor(minutes / 60))}:${two(minutes % 60)}:${seconds}`;
}
