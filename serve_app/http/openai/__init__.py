"""OpenAI's audio API over the same requests."""
