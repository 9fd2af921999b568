"""Settings of a batcher that change while it runs: what stands under `user_config`."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from serve_app.batching.batcher import Batcher


class BatchConfig(BaseModel):
    """`user_config` of a stage; changes at run time. What it leaves out stays as bound."""

    model_config = ConfigDict(extra="forbid")

    max_batch_size: int = Field(8, ge=1, le=256)
    wait_s: float = Field(0.0, ge=0, le=1)

    def apply(self, batcher: Batcher[Any, Any], changes: dict[str, Any]) -> None:
        """Sets the batcher to this with `changes`; raises ValidationError for what is no setting."""
        changed = self.model_validate(self.model_dump() | changes)
        for name, value in changed:
            setattr(batcher, name, value)


class TranscriberConfig(BatchConfig):
    """`user_config` of the Transcriber, which hears how many requests are on their way."""

    company_s: float = Field(0.0, ge=0, le=10)


class AlignerConfig(BatchConfig):
    """`user_config` of the Aligner, whose windows take time by their length."""

    max_batch_s: float | None = Field(None, gt=0)  # of audio; a longer window still goes, alone
