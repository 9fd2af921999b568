/** What the page says at its top, and the form for the API key. */
import { ApiError } from "./api.js";
import { byId, make } from "./elements.js";
import { explain, t } from "./words.js";

let sayer = ""; // the part of the page that said the sentence

/** Shows a sentence instead of the last one; an empty text only removes the last one. `by` is for `unsay`. */
export function say(text, by = "") {
  sayer = by;
  byId("said").replaceChildren(...(text ? [make("p", {}, text)] : []));
}

/** Removes the sentence if this part of the page said it. */
export function unsay(by) {
  if (sayer === by) say("");
}

/** What went wrong, as a sentence. Unexpected errors go to the browser's console too. */
export function reasonOf(error) {
  if (!(error instanceof ApiError) && !("code" in error)) console.error(error);
  return explain(error) || t("error_500");
}

/** Says what went wrong, unless the user canceled it or the server only has no jobs, which the page can do without. */
export function tell(error, by) {
  if (error.name === "AbortError" || error.code === "jobs_off") return;
  if (error.status === 401) askForKey();
  say(reasonOf(error), by);
}

export function askForKey() {
  byId("key").hidden = false;
  byId("key-field").focus();
}
