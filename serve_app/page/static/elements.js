/** Finding and making elements of the page. */

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** A new element with these properties and children; `data` and `class` are what they are in HTML. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** Seconds as people read them: 1:05, 1:02:03. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds || 0));
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"));
  const hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${parts.join(":")}` : `${Number(parts[0])}:${parts[1]}`;
}

/** Lets the browser paint and answer the user before long work goes on. */
export const pause = () => new Promise((resume) => setTimeout(resume));

/** A value kept in this browser, or `fallback` if it is missing or cannot be read. */
export function kept(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`whisperx.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Keeps a value in this browser; `undefined` removes it. Gives false if the browser refuses: full storage, private window. */
export function keep(name, value) {
  try {
    if (value === undefined) localStorage.removeItem(`whisperx.${name}`);
    else localStorage.setItem(`whisperx.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Saves a File or Blob as a download. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** Copies text, also where the page has no secure context; says whether that worked. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = make("textarea", { class: "hidden" }, text);
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
