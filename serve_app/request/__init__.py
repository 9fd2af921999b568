"""One request from audio to transcript, and how many at once. Plain async functions, no Ray."""
