"""Which names of models clients may send, OpenAI's among them, and what each stands for."""

from collections.abc import Collection, Mapping

from pydantic import Field, field_validator

from serve_app.settings.types import Strict

ANY = "*"  # an alias for every other name
Defaults = Mapping[str, bool | int | float | str | tuple[str, ...]]

# OpenAI's models, none of which could be meant here: their weights are OpenAI's own. Other servers' names,
# such as large-v3, are not among them, because a server with that model would answer differently.
SHIPPED: Mapping[str, Defaults] = {
    "whisper-1": {},
    "whisper": {},  # what Azure's documents call a deployment of it
    "gpt-transcribe": {},
    "gpt-4o-transcribe": {},
    "gpt-4o-mini-transcribe": {},
    "gpt-4o-mini-transcribe-2025-03-20": {},
    "gpt-4o-mini-transcribe-2025-12-15": {},
    "gpt-4o-transcribe-diarize": {"diarize": True},
}


class OpenAISettings(Strict):
    """Names of models, on every route that takes one."""

    aliases: dict[str, dict[str, bool | int | float | str | tuple[str, ...]] | None] = Field(
        default_factory=dict,
        description="Names of models and the options that each stands for, unless a request has its own, "
        "such as `meetings: {diarize: true, language: de}`; `*` is any other name. The option `model` is one "
        "of `models`. They add to OpenAI's: "
        f"{', '.join(SHIPPED)}. The last one tells speakers apart. null takes a name away.",
    )

    @field_validator("aliases")
    @classmethod
    def _are_options(cls, aliases: dict[str, object]) -> dict[str, object]:
        for name, given in aliases.items():
            if not name.strip() or (isinstance(given, dict) and not isinstance(given.get("model", ""), str)):
                raise ValueError("openai.aliases: a name stands for options, of which model is a name")
        return aliases

    def refuse_unknown_models(self, names: Collection[str]) -> None:
        """Raises ValueError for an alias of a model that is not among these, or of one that is."""
        for alias, given in self.aliases.items():
            if given is None or "model" not in given:
                continue
            if alias in names:
                raise ValueError(f"openai.aliases: {alias}: this is a model itself and stands for no other")
            if given["model"] not in names:
                known = ", ".join(names)
                raise ValueError(f"openai.aliases: {alias}: there is no such model; there are {known}")

    def names(self) -> dict[str, Defaults]:
        """All aliases, shipped ones too, with their options."""
        return {name: given for name, given in {**SHIPPED, **self.aliases}.items() if given is not None}
