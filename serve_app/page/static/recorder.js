/** Recording from the microphone. */

/** Starts; gives `stop()`, which ends the recording and gives it as a File. Throws an Error whose message names a text. */
export async function record(name) {
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
