"""The flags of whisperx's command line: how they may be written, and those that are refused."""

from typing import Any

from typer.core import TyperCommand

# Flags of whisperx that have no counterpart here, and what to do instead.
_CONFIG = "set it in a config file (whisperx-serve settings) and name that with --config"
_ALWAYS = "leave it out, this is always on"
_NEVER = "leave it out, there is no such choice here"
REFUSED = {
    "hf_token": "put the token into the environment variable HF_TOKEN, where other users cannot see it",
    "batch_size": "leave it out, batches mix pieces of all running files; --jobs sets how many run at once",
    "device_index": "choose GPUs by the environment variable CUDA_VISIBLE_DEVICES",
    "model_cache_only": "leave it out, models that are on this machine are used without asking a hub",
    "align_model": _CONFIG,
    "interpolate_method": _NEVER,
    "best_of": _NEVER,
    "patience": _NEVER,
    "length_penalty": _NEVER,
    "suppress_tokens": _NEVER,
    "condition_on_previous_text": _NEVER,
    "fp16": "leave it out and use --compute_type",
    "temperature_increment_on_fallback": "use --temperature_inc",
    "compression_ratio_threshold": _CONFIG,
    "logprob_threshold": _CONFIG,
    "no_speech_threshold": _CONFIG,
    "segment_resolution": _NEVER,
    "print_progress": _ALWAYS,
    "verbose": _NEVER,
    "log_level": _NEVER,
    "threads": _CONFIG,
    "version": "leave it out, `pip show whisperx-serve` shows it",
    "python_version": "leave it out, `python --version` shows it",
}
_SWITCH = ("true", "false")


class WhisperxCommand(TyperCommand):
    """A command whose flags may be written with `_` or `-`, and as `--highlight_words True`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrites the flags for typer; refuses those that have no counterpart."""
        names = {name.replace("_", "-"): (name, param) for param in self.params for name in param.opts}
        out: list[str] = []
        left = list(args)
        while left:
            arg = left.pop(0)
            name, equals, value = arg.partition("=")
            plain = name.removeprefix("--").replace("-", "_")
            if name.startswith("--") and plain in REFUSED and not ctx.resilient_parsing:
                ctx.fail(f"--{plain}: {REFUSED[plain]}.")
            known, param = names.get(name.replace("_", "-"), (name, None))
            if arg == "--":
                return super().parse_args(ctx, [*out, arg, *left])
            if getattr(param, "is_flag", False):
                if not equals and left and left[0].lower() in _SWITCH:
                    equals, value = "=", left.pop(0)
                if equals and value.lower() not in _SWITCH and not ctx.resilient_parsing:
                    ctx.fail(f"{name}: {value!r} is neither True nor False.")
                out += [] if value.lower() == "false" else [known]
            else:
                out.append(f"{known}{equals}{value}")
        return super().parse_args(ctx, out)
