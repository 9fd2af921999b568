/** Recording from the microphone. */
import { byId, clock } from "./elements.js";
import { say } from "./messages.js";
import { locale, t } from "./words.js";

/** The button that starts a recording and ends it. */
export class Recorder {
  /** `onRecorded(file)` gets what was recorded. */
  constructor(onRecorded) {
    this.onRecorded = onRecorded;
    this.recording = null;
    this.isBusy = false; // while a click is being handled
    byId("record").addEventListener("click", () => this.#clicked());
  }

  get isOn() {
    return Boolean(this.recording);
  }

  async #clicked() {
    if (this.isBusy) return;
    this.isBusy = true;
    try {
      await (this.isOn ? this.#stop() : this.#start());
    } catch (error) {
      say(t(error.message));
    } finally {
      this.isBusy = false;
    }
  }

  async #start() {
    say("");
    const time = new Date().toLocaleTimeString(locale(), { timeStyle: "short" }).replace(/:/g, ".");
    const started = await record(t("recording_name", { time }));
    const begun = Date.now();
    const show = () => (byId("record-time").textContent = `${t("recording")} ${clock((Date.now() - begun) / 1000)}`);
    this.recording = { ...started, timer: setInterval(show, 500) };
    show();
    this.#show(true);
  }

  async #stop() {
    clearInterval(this.recording.timer);
    this.#show(false);
    const file = await this.recording.stop();
    this.recording = null;
    this.onRecorded(file);
  }

  #show(isOn) {
    byId("record").classList.toggle("on", isOn);
    byId("record-time").hidden = !isOn;
    byId("record").children[1].textContent = t(isOn ? "record_stop" : "record");
  }
}

/** Starts a recording; `stop()` ends it and gives it as a File. The message of an Error is the name of a text. */
async function record(name) {
  if (!navigator.mediaDevices?.getUserMedia) throw new Error("microphone_insecure");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true }).catch((error) => {
    throw new Error(error.name === "NotAllowedError" ? "microphone_denied" : "microphone_none");
  });
  const type = ["audio/webm;codecs=opus", "audio/mp4"].find((each) => MediaRecorder.isTypeSupported(each)) ?? "";
  const recorder = new MediaRecorder(stream, type ? { mimeType: type } : {});
  const parts = [];
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.start(1000);
  return {
    stop: () =>
      new Promise((resolve) => {
        recorder.addEventListener("stop", () => {
          for (const track of stream.getTracks()) track.stop();
          const isMp4 = recorder.mimeType.includes("mp4");
          resolve(new File(parts, `${name}.${isMp4 ? "m4a" : "webm"}`, { type: recorder.mimeType.split(";")[0] }));
        });
        recorder.stop();
      }),
  };
}
