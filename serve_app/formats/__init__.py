"""A transcript as text: plain, subtitles, tables, speaker turns."""
