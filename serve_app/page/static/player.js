/** The audio of a transcript: playing, the waveform by wavesurfer.js, and a lane for each speaker. */
import { byId, clock } from "./elements.js";
import { colourOf } from "./segments.js";
import { t } from "./words.js";

const MAX_PIXELS_PER_S = 300;
const LANE_PX = 9;

export class Player {
  /** `onTime(timeS)` hears where the playing is, for each frame that is shown. */
  constructor(onTime) {
    this.audio = byId("audio");
    this.onTime = onTime;
    this.durationS = 0;
    this.turns = [];
    for (const name of ["play", "pause", "ended"]) this.audio.addEventListener(name, () => this.#showState());
    for (const name of ["seeked", "timeupdate"]) this.audio.addEventListener(name, () => this.#showTime());
    this.audio.addEventListener("error", () => this.audio.src && this.missing("no_audio_format"));
    byId("play").addEventListener("click", () => this.toggle());
    byId("seek").addEventListener("input", (event) => this.seek(Number(event.target.value)));
    byId("speed").addEventListener("change", (event) => (this.audio.playbackRate = Number(event.target.value)));
    byId("zoom").addEventListener("input", () => this.#zoom());
    byId("lanes").addEventListener("click", (event) => {
      const [fromS, toS] = this.#visible();
      this.seek(fromS + ((toS - fromS) * event.offsetX) / event.target.clientWidth);
    });
    new ResizeObserver(() => this.draw()).observe(byId("lanes").parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#waveform());
  }

  /** Shows a transcript's audio, a File or Blob, or says that there is none. */
  load(transcript, audio) {
    if (transcript !== this.transcript) this.peaks = null;
    this.transcript = transcript;
    this.durationS = transcript.durationS;
    this.turns = transcript.turns();
    this.audio.pause();
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = audio ? URL.createObjectURL(audio) : "";
    if (this.url) this.audio.src = this.url;
    else this.audio.removeAttribute("src");
    byId("no-audio").hidden = Boolean(audio);
    byId("no-audio-why").textContent = t("no_audio_here");
    byId("play").disabled = !audio;
    byId("seek").max = String(this.durationS);
    byId("zoom").value = "0";
    this.#waveform();
    this.#showState();
    this.#showTime();
  }

  /** Draws the waveform with these peaks, from 0 to 1. */
  showPeaks(peaks) {
    this.peaks = peaks.length ? peaks : null;
    this.#waveform();
  }

  /** Says why there is no audio to play. */
  missing(why) {
    byId("no-audio").hidden = false;
    byId("no-audio-why").textContent = t(why);
    byId("play").disabled = true;
  }

  get hasAudio() {
    return Boolean(this.url);
  }

  /** Plays from this time on. */
  play(timeS) {
    if (!this.hasAudio) {
      this.seek(timeS);
      return;
    }
    this.audio.currentTime = timeS;
    this.audio.play().catch(() => {}); // the event `error` says why
  }

  toggle() {
    if (!this.hasAudio) return;
    if (this.audio.paused) this.audio.play().catch(() => {});
    else this.audio.pause();
  }

  /** Goes to this time, playing or not. */
  seek(timeS) {
    const bounded = Math.min(Math.max(0, timeS), this.durationS);
    if (this.hasAudio) this.audio.currentTime = bounded;
    else this.wave?.setTime(bounded);
    this.#showTime(bounded);
  }

  get timeS() {
    return this.hasAudio ? this.audio.currentTime : Number(byId("seek").value);
  }

  /** Draws the lanes of what is visible of the waveform. */
  draw() {
    const canvas = byId("lanes");
    const speakers = [...new Set(this.turns.map((turn) => turn.speaker))];
    canvas.hidden = !this.transcript || !this.turns.length;
    if (canvas.hidden) return;
    const names = [...this.transcript.speakers, ...(speakers.includes(null) ? [null] : [])];
    const ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = names.length * LANE_PX + 2;
    canvas.style.height = `${height}px`;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const colours = names.map((name) => colour(`--${colourOf(this.transcript, name)}`));
    const [fromS, toS] = this.#visible();
    const scale = width / (toS - fromS);
    for (const { start, end, speaker } of this.turns) {
      if (end < fromS || start > toS) continue;
      const lane = names.indexOf(speaker);
      context.fillStyle = colours[lane];
      context.fillRect((start - fromS) * scale, lane * LANE_PX + 1, Math.max(1, (end - start) * scale), LANE_PX - 2);
    }
    const now = (this.timeS - fromS) * scale;
    context.fillStyle = colour("--text");
    context.fillRect(now - 0.5, 0, 1.5, height);
  }

  /** What part of the speech each speaker has, in percent. */
  shares() {
    const seconds = new Map();
    for (const { start, end, speaker } of this.turns) seconds.set(speaker, (seconds.get(speaker) ?? 0) + end - start);
    const total = [...seconds.values()].reduce((sum, each) => sum + each, 0) || 1;
    return new Map([...seconds].map(([speaker, each]) => [speaker, Math.round((100 * each) / total)]));
  }

  /** Says in words what the lanes show. */
  describe() {
    const shares = [...this.shares()].map(([speaker, part]) => `${this.transcript.nameOf(speaker) ?? t("speaker_unknown")} ${part} %`);
    byId("lanes").setAttribute("aria-label", t("lanes", { shares: shares.join(", ") }));
  }

  #waveform() {
    this.wave?.destroy();
    this.wave = null;
    const isDrawn = Boolean(this.transcript && this.peaks && globalThis.WaveSurfer && this.durationS);
    byId("wave").hidden = byId("zoom-label").hidden = !isDrawn;
    if (isDrawn) {
      this.wave = globalThis.WaveSurfer.create({
        container: byId("wave"),
        media: this.audio,
        peaks: [this.peaks],
        duration: this.durationS,
        height: Math.min(64, innerHeight / 14),
        waveColor: colour("--wave"),
        progressColor: colour("--accent"),
        cursorColor: colour("--text"),
        normalize: true,
        dragToSeek: true,
        cspNonce: document.querySelector("script[nonce]").nonce,
      });
      this.wave.on("interaction", (timeS) => this.hasAudio || this.#showTime(timeS));
      for (const name of ["scroll", "redraw", "zoom"]) this.wave.on(name, () => this.draw());
    }
    this.draw();
  }

  #zoom() {
    if (!this.wave) return;
    const fit = byId("wave").clientWidth / this.durationS;
    const part = Number(byId("zoom").value) / 100;
    this.wave.zoom(part ? fit * (Math.max(MAX_PIXELS_PER_S, fit) / fit) ** part : 0);
  }

  /** The seconds that the waveform shows: all of them, unless it is zoomed. */
  #visible() {
    const whole = this.wave?.getWrapper().scrollWidth ?? 0;
    if (!whole) return [0, this.durationS || 1];
    const from = this.wave.getScroll() / whole;
    return [from * this.durationS, Math.min(1, from + this.wave.getWidth() / whole) * this.durationS];
  }

  #showState() {
    const isPaused = this.audio.paused;
    const [sign, word] = byId("play").children;
    sign.textContent = isPaused ? "▶" : "⏸";
    word.textContent = t(isPaused ? "play" : "pause");
    cancelAnimationFrame(this.frame);
    if (!isPaused) this.#everyFrame();
  }

  #everyFrame() {
    this.#showTime();
    this.frame = requestAnimationFrame(() => this.#everyFrame());
  }

  #showTime(timeS = this.timeS) {
    const shown = `${clock(timeS)} / ${clock(this.durationS)}`;
    if (byId("clock").textContent !== shown) {
      byId("clock").textContent = shown;
      byId("seek").setAttribute("aria-valuetext", shown);
    }
    byId("seek").value = String(timeS);
    this.draw();
    this.onTime(timeS);
  }
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
