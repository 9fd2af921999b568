/** The service's HTTP API: requests with the user's key, uploads with progress, and a job's events. */
import { keep, kept } from "./elements.js";

const ROOT = new URL("../", import.meta.url); // also right behind a prefix

/** The absolute address of a path of the API. */
export const address = (path) => new URL(path, ROOT).href;

/** The key is kept in this browser only. */
export const key = {
  get: () => kept("key", ""),
  set: (value) => keep("key", value || undefined),
};

/** An answer that is not 2xx, or none at all (status 0). */
export class ApiError extends Error {
  constructor(status, error = {}, retryAfterS = null) {
    super(error.message ?? "");
    Object.assign(this, { status, code: error.code ?? "", retryAfterS });
  }
}

const headers = () => (key.get() ? { Authorization: `Bearer ${key.get()}` } : {});

async function errorOf(answer) {
  const wait = Number(answer.headers.get("Retry-After")) || null;
  const body = await answer.json().catch(() => ({}));
  return new ApiError(answer.status, body.error, wait);
}

/** The answer to a request; throws ApiError. */
export async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(address(path), { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0);
  }
  if (!answer.ok) throw await errorOf(answer);
  return answer;
}

/** The JSON of an answer. */
export const json = async (path, options) => (await request(path, options)).json();

/**
 * Sends audio, a File or a URL, with options; `onSent` hears the part of the bytes that is sent. An
 * XMLHttpRequest, because fetch tells no progress of uploads.
 */
export function send(path, source, options, onSent, signal) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", address(path));
    for (const [name, value] of Object.entries(headers())) sending.setRequestHeader(name, value);
    sending.upload.onprogress = (event) => event.lengthComputable && onSent(event.loaded / event.total);
    sending.onerror = () => reject(new ApiError(0, { code: source.size ? "not_sent" : "" }));
    sending.onabort = () => reject(new DOMException("", "AbortError"));
    sending.onload = () => {
      let body = {};
      try {
        body = JSON.parse(sending.responseText);
      } catch {
        // Not from the service: a proxy's page.
      }
      if (sending.status < 300) resolve(body);
      else reject(new ApiError(sending.status, body.error, Number(sending.getResponseHeader("Retry-After")) || null));
    };
    signal?.addEventListener("abort", () => sending.abort());
    if (typeof source === "string") {
      sending.setRequestHeader("Content-Type", "application/json");
      sending.send(JSON.stringify({ audio_file: source, ...options }));
      return;
    }
    const form = new FormData();
    for (const [name, value] of Object.entries(options)) form.append(name, value);
    form.append("file", source, source.name || "audio");
    sending.send(form);
  });
}

/** Calls `onEvent(name, data)` for each event of a job until it has ended; connects again where that breaks. */
export async function follow(jobId, onEvent, signal) {
  let lastId = "";
  for (let failures = 0; ; failures++) {
    try {
      const resume = lastId ? { "Last-Event-ID": lastId } : {};
      const answer = await request(`v1/jobs/${jobId}/events`, { headers: resume, signal });
      if (answer.status === 204) return;
      for await (const { id, event, data } of eventsOf(answer.body)) {
        failures = 0;
        lastId = id || lastId;
        if (event === "error") throw new ApiError(404, data.error);
        onEvent(event, data);
        if (["succeeded", "failed", "canceled", "expired"].includes(event)) return;
      }
    } catch (error) {
      const passes = error instanceof ApiError ? error.status === 0 || error.status >= 500 : error instanceof TypeError;
      if (!passes || signal?.aborted) throw error;
    }
    await new Promise((resume) => setTimeout(resume, Math.min(500 * 2 ** failures, 10000)));
  }
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = { id: "", event: "message", data: "" };
        for (const line of block.split("\n")) {
          const [, name, rest] = line.match(/^(\w+): ?(.*)$/) ?? [];
          if (name in fields) fields[name] = name === "data" ? fields.data + rest : rest;
        }
        if (fields.data) yield { ...fields, data: JSON.parse(fields.data) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
