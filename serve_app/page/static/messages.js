/** What the page says at its top, and the form for the API key. */
import { ApiError } from "./api.js";
import { byId, make } from "./elements.js";
import { explain, t } from "./words.js";

let sayer = "";

/** Says a sentence in the place of the last one; an empty text only removes that. `by` is for `unsay`. */
export function say(text, by = "") {
  sayer = by;
  byId("said").replaceChildren(...(text ? [make("p", {}, text)] : []));
}

/** Removes what is said, if it was said by this part of the page. */
export function unsay(by) {
  if (sayer === by) say("");
}

/** What went wrong, as a sentence. What is not known to happen is in the browser's console too. */
export function reasonOf(error) {
  if (!(error instanceof ApiError) && !("code" in error)) console.error(error);
  return explain(error) || t("error_500");
}

/** Says what went wrong, unless the user has ended it or the page does without. */
export function tell(error, by) {
  if (error.name === "AbortError" || error.code === "jobs_off") return;
  if (error.status === 401) askForKey();
  say(reasonOf(error), by);
}

export function askForKey() {
  byId("key").hidden = false;
  byId("key-field").focus();
}
