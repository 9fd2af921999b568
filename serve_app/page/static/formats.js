/** Writes edited transcripts as `serve_app/formats` writes unedited ones. */

import { cues, milliseconds, oneLine } from "./cues.js";
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

const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const withoutArrows = (text) => text.replace(/-{2,}>/g, "->"); // `-->` stands between the times of SRT

/** The server's subtitles with the user's names for the speakers. */
export function renamed(transcript, format, servers) {
  const label = (speaker) => (format === "srt" ? withoutArrows(prefix(speaker)) : voice(speaker));
  const labels = new Map(transcript.speakers.map((speaker) => [label(speaker), label(transcript.nameOf(speaker))]));
  return servers.replace(/( --> .*\n)(\[.*?\]: |<v .*?>)/g, (whole, times, before) => {
    return labels.has(before) ? times + labels.get(before) : whole;
  });
}

/** The transcript in a format. `rttm` needs the server's RTTM; `layout` holds the options for subtitle lines. */
export function written(transcript, format, { serversRttm = "", layout = {} } = {}) {
  return WRITERS[format](transcript, { serversRttm, layout });
}

const WRITERS = {
  srt: (transcript, { layout }) =>
    cues(transcript, layout)
      .map(({ start, end, text, speaker }, index) => {
        const lines = withoutArrows(prefix(speaker) + text);
        return `${index + 1}\n${clock(start, ",")} --> ${clock(end, ",")}\n${lines}\n\n`;
      })
      .join(""),
  vtt: (transcript, { layout }) =>
    ["WEBVTT\n\n"]
      .concat(
        cues(transcript, layout, escaped).map(({ start, end, text, speaker }) => {
          const [from, to] = [start, end].map((at) => clock(at, ".").replace(/^00:(?=\d\d:)/, ""));
          return `${from} --> ${to}\n${voice(speaker)}${text}\n\n`;
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
  rttm: (transcript, { serversRttm }) =>
    turns(transcript, serversRttm)
      .map(({ start, end, field }) => {
        const speaker = transcript.speakers.find((each) => inField(each) === field);
        const times = `${(start / 1000).toFixed(3)} ${((end - start) / 1000).toFixed(3)}`;
        return `SPEAKER audio 1 ${times} <NA> <NA> ${speaker ? inField(transcript.nameOf(speaker)) : field} <NA> <NA>\n`;
      })
      .join(""),
};

const inField = (name) => oneLine(name ?? "").replace(/\s/g, "_");

/** The server's speaker turns, with segments that the user gave to another speaker moved to that one. */
function turns(transcript, servers) {
  let found = servers.split("\n").filter(Boolean).map((line) => {
    const fields = line.split(" ");
    const start = milliseconds(fields[3]);
    return { start, end: start + milliseconds(fields[4]), field: fields[7] };
  });
  for (const { start: startS, end: endS, from, to } of transcript.moves()) {
    const [start, end] = [milliseconds(startS), milliseconds(endS)];
    found = found.flatMap((turn) => {
      if (![inField(from), inField(to)].includes(turn.field) || turn.end <= start || turn.start >= end) return [turn];
      return [{ ...turn, end: start }, { ...turn, start: end }].filter((rest) => rest.start < rest.end);
    });
    found.push({ start, end, field: inField(to) });
    found.sort((one, other) => one.start - other.start);
  }
  return found;
}

const named = (transcript, part) => ({ ...part, speaker: transcript.nameOf(part.speaker) });
const wordsOf = (transcript, segment) => {
  // The words of a segment that was not aligned have no times.
  const words = segment.words.length ? segment.words : retimed(segment.text, [], segment, transcript.language);
  return words.map((word) => named(transcript, word));
};
const voice = (speaker) => (speaker ? `<v ${escaped(oneLine(speaker))}>` : "");
const prefix = (speaker) => (speaker ? `[${oneLine(speaker)}]: ` : "");

function clock(ms, point) {
  const two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(ms / 60000);
  const rest = ms % 60000;
  const seconds = `${two(Math.floor(rest / 1000))}${point}${String(rest % 1000).padStart(3, "0")}`;
  return `${two(Math.floor(minutes / 60))}:${two(minutes % 60)}:${seconds}`;
}
