"""Ray books shares of a GPU and enforces none of them; of torch's memory this does."""


def keep_within_share(gpu_share: float, device: str) -> None:
    """Bounds what torch takes of the GPU in this process; on "cpu" it does nothing.

    A stage that grows beyond its share is then out of memory itself, which it survives, and takes nothing
    from the others. CUDA's own context, some 0.4 GB a process, and CTranslate2 are not bounded by it.
    """
    if device == "cuda":
        import torch

        torch.cuda.set_per_process_memory_fraction(gpu_share)
