// Calls OpenAI's own package for Node, and prints one line of JSON for each call that was asked for.
//
//   node calls.mjs URL KEY FILE CALL...
import fs from "node:fs";
import OpenAI, { AzureOpenAI, toFile } from "openai";

const [url, apiKey, path, ...asked] = process.argv.slice(2);
const tries = []; // of every request: status, Retry-After, the package's own count
const noting = async (input, init) => {
  const answer = await fetch(input, init);
  const header = (name) => answer.headers.get(name);
  tries.push([answer.status, header("retry-after"), new Headers(init.headers).get("x-stainless-retry-count")]);
  if (answer.status === 503) console.log(JSON.stringify({ call: "told to wait" }));
  return answer;
};
const settings = { apiKey, maxRetries: 0, fetch: noting };
const client = new OpenAI({ ...settings, baseURL: `${url}/v1` });
const azure = new AzureOpenAI({ ...settings, endpoint: url, apiVersion: "2024-10-21" });
const deployed = new AzureOpenAI({ ...settings, endpoint: url, apiVersion: "2024-10-21", deployment: "whisper" });
const file = () => fs.createReadStream(path);

const transcribe = (from, body) => from.audio.transcriptions.create({ file: file(), model: "whisper-1", ...body });
const events = async (from, body) => {
  const all = [];
  for await (const event of await transcribe(from, { ...body, stream: true })) all.push(event);
  return all;
};
const failure = async (call) => {
  try {
    return await call;
  } catch (error) {
    const { name, status, code, param, message, requestID } = error;
    return { class: error.constructor.name, name, status, code, param, message, requestID };
  }
};

const calls = {
  json: () => transcribe(client),
  verbose_json: () =>
    transcribe(client, { response_format: "verbose_json", timestamp_granularities: ["word", "segment"] }),
  diarized_json: () =>
    transcribe(client, { model: "gpt-4o-transcribe-diarize", response_format: "diarized_json", chunking_strategy: "auto" }),
  srt: () => transcribe(client, { response_format: "srt" }),
  stream: () => events(client),
  translation: () => client.audio.translations.create({ file: file(), model: "whisper-1" }),
  models: async () => {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    return ids;
  },
  model: () => client.models.retrieve("whisper-1"),
  azure: () => transcribe(azure, { model: "gpt-4o-transcribe" }),
  azure_deployment: () => transcribe(deployed, { response_format: "verbose_json" }),
  azure_stream: () => events(azure),
  azure_translation: () => azure.audio.translations.create({ file: file(), model: "whisper" }),
  wrong_key: () => failure(transcribe(new OpenAI({ ...settings, apiKey: "wx_wrong", baseURL: `${url}/v1` }))),
  wrong_model: () => failure(transcribe(client, { model: "large-v3" })),
  wrong_option: () => failure(transcribe(client, { language: "klingon" })),
  // It sends nothing again that it read from a stream, which is gone by then.
  patient: async () => transcribe(client.withOptions({ maxRetries: 2 }), { file: await toFile(fs.readFileSync(path), "talk.wav") }),
  patient_with_a_stream: () => transcribe(client.withOptions({ maxRetries: 2 })),
};

for (const call of asked) {
  tries.length = 0;
  const answer = await failure(calls[call]());
  console.log(JSON.stringify({ call, answer, tries }));
}
