"""What happens to the audio, in this order: fetch, decode, speech, asr, alignment, diarization, speakers."""
