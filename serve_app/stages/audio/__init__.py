"""A URL or file to samples: fetch, address check, decode in a sandbox."""
