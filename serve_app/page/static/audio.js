/** The audio of jobs, kept in this browser, because the server erases an upload when its job ends. */
import { address } from "./api.js";

// Browsers offer no Cache Storage to pages loaded by plain http from another host.
const opened = async () => globalThis.caches?.open("audio");
const ROOT = address("");
const placeOf = (jobId) => ROOT + jobId; // its name in the cache; nothing is fetched from there

/** Keeps a File or Blob as a job's audio, where this browser can. */
export async function keepAudio(jobId, audio) {
  try {
    await (await opened())?.put(placeOf(jobId), new Response(audio));
  } catch {
    // There is no room. When the job is opened again, the page says that its audio is missing.
  }
}

/** A job's audio, or null where this browser does not have it. */
export async function keptAudio(jobId) {
  try {
    const found = await (await opened())?.match(placeOf(jobId));
    return (await found?.blob()) ?? null;
  } catch {
    return null;
  }
}

/** Removes a job's audio from this browser. */
export async function forgetAudio(jobId) {
  try {
    await (await opened())?.delete(placeOf(jobId));
  } catch {
    // A browser that keeps nothing has nothing to remove.
  }
}

/** The ids of jobs whose audio is in this browser. */
export async function jobsWithAudio() {
  try {
    const kept = ((await (await opened())?.keys()) ?? []).map(({ url }) => url).filter((url) => url.startsWith(ROOT));
    return kept.map((url) => url.slice(ROOT.length));
  } catch {
    return [];
  }
}
