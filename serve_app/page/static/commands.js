/** What the page would send, as a command or a program. The user's key is never in it. */
import { address, key } from "./api.js";

const quoted = (text) => `'${String(text).replace(/'/g, "'\\''")}'`;
const literal = (text) => JSON.stringify(String(text));

/** The command or program of this kind: `curl`, `python` or `openai`. `source` is a file's name or a URL. */
export function command(kind, source, options) {
  return KINDS[kind](source, Object.entries(options), /^https?:\/\//.test(source));
}

const KINDS = {
  curl: (source, options, isUrl) => {
    const lines = [`curl -s ${address("predict")}`];
    if (key.get()) lines.push('-H "Authorization: Bearer $WHISPERX_KEY"');
    if (isUrl) {
      lines.push("-H 'Content-Type: application/json'");
      lines.push(`-d ${quoted(JSON.stringify({ audio_file: source, ...typed(options) }))}`);
    } else {
      // Unquoted, and with -F, curl gives `;`, `,`, `@` and `<` a special meaning.
      lines.push(`-F ${quoted(`file=@"${source.replace(/["\\]/g, "\\$&")}"`)}`);
      lines.push(...options.map(([name, value]) => `--form-string ${quoted(`${name}=${value}`)}`));
    }
    return lines.join(" \\\n  ");
  },
  python: (source, options, isUrl) => {
    const fields = options.map(([name, value]) => `${literal(name)}: ${literal(value)}`).join(", ");
    const body = isUrl
      ? `json={"audio_file": ${literal(source)}, ${python(typed(options))}}`.replace(/, \}$/, "}")
      : `files={"file": open(${literal(source)}, "rb")}, data={${fields}}`;
    const given = key.get() ? `headers={"Authorization": f"Bearer {os.environ['WHISPERX_KEY']}"},\n    ` : "";
    return `${key.get() ? "import os\n" : ""}import httpx

answer = httpx.post(
    ${literal(address("predict"))},
    ${given}${body},
    timeout=None,
)
answer.raise_for_status()
for segment in answer.json()["model_output"]:
    print(segment["start"], segment["speaker"], segment["text"])`;
  },
  openai: (source, options, isUrl) => {
    const opened = isUrl ? `# OpenAI's API takes files only: download the address first\n    file=open("talk.mp3", "rb")` : `file=open(${literal(source)}, "rb")`;
    const more = options.filter(([name]) => name !== "task" && name !== "diarize" && name !== "language");
    const extra = more.length ? `\n    extra_body={${python(Object.fromEntries(more))}},` : "";
    const spoken = options.find(([name]) => name === "language");
    const isTranslation = options.some(([name, value]) => name === "task" && value === "translate");
    const format = isTranslation ? "verbose_json" : "diarized_json";
    return `${key.get() ? "import os\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${literal(address("v1"))}, api_key=${key.get() ? 'os.environ["WHISPERX_KEY"]' : '"none"'}, timeout=3600)
answer = client.audio.${isTranslation ? "translations" : "transcriptions"}.create(
    model="whisper-1",
    ${opened},
    response_format=${literal(format)},${spoken && !isTranslation ? `\n    language=${literal(spoken[1])},` : ""}${extra}
)
for segment in answer.segments:
    print(segment.start, ${isTranslation ? "" : "segment.speaker, "}segment.text)`;
  },
};

/** The options as JSON has them: numbers and booleans are not text. */
function typed(options) {
  const values = { true: true, false: false };
  const numbers = ["min_speakers", "max_speakers"];
  return Object.fromEntries(options.map(([name, value]) => [name, values[value] ?? (numbers.includes(name) ? Number(value) : value)]));
}

const python = (fields) =>
  Object.entries(fields)
    .map(([name, value]) => `${literal(name)}: ${typeof value === "boolean" ? (value ? "True" : "False") : JSON.stringify(value)}`)
    .join(", ");
