"""The request of a run for every file, the check whether an earlier run has done it, and the counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.cli import CommandFailed
from serve_app.cli.transcribe.inputs import Done, Input, Inputs, hash_of, in_words
from serve_app.cli.transcribe.writers import Layout

SHOWN_WITH_WORDS = ("confidence", "char_timestamps")  # options that add something to each word


@dataclass(frozen=True, slots=True)
class Wanted:
    """The request of a run for every file."""

    options: dict[str, Any]  # of the service
    formats: tuple[str, ...]
    layout: Layout
    folder: Path
    concurrency: int
    has_words: bool  # words with times
    settings: dict[str, str]  # of a service that is started for this run

    def path(self, each: Input, form: str) -> Path:
        """Where an output of this file is written."""
        suffix = "words.json" if form == "words" else form
        return self.folder / f"{each.output}.{suffix}"

    def mark(self, each: Input) -> str:
        """The hash of this version of the file and of the whole request for it. Raises OSError."""
        layout = self.layout
        lines = [layout.max_line_width, layout.max_line_count, layout.highlight_words]
        return hash_of(each.version(), self.options, lines, self.has_words, self.settings)

    def is_done(self, each: Input, mark: str, done: Done) -> bool:
        """Whether all outputs of this mark were written before and exist. Raises OSError for long names."""
        paths = [self.path(each, form) for form in self.formats]
        are_there = [path.exists() for path in paths]
        return all(are_there) and all(done.has(path, mark) for path in paths)


@dataclass(slots=True)
class Tally:
    """The counts of a run."""

    transcribed: int = 0
    done_before: int = 0
    failed: int = 0

    def summary(self) -> str:
        """The counts in one line."""
        before = f", {self.done_before} done before" if self.done_before else ""
        return f"{self.transcribed} transcribed{before}, {self.failed} failed."


def done_before(wanted: Wanted, paths: Sequence[str]) -> Tally | None:
    """The counts if earlier runs have done all files, so that no service is needed. Raises CommandFailed."""
    unreadable: list[OSError] = []
    done, files = Done(wanted.folder), [*Inputs(unreadable.append).found(paths)]
    if not files:
        reasons = [f" {in_words(error)}." for error in unreadable]
        raise CommandFailed(f"there is no audio or video file in {', '.join(paths)}.{''.join(reasons)}")
    try:
        is_done = not unreadable and all(wanted.is_done(each, wanted.mark(each), done) for each in files)
    except OSError:  # the run reports it when it comes to that file
        is_done = False
    return Tally(done_before=len(files)) if is_done else None
