"""Runs a graph on three Ray nodes and prints what test_several_nodes asserts."""

import asyncio
import json
import random
import signal

from benchmarks.chaos.load import Clip, mixed_clips
from benchmarks.chaos.models import WINDOW_S, checksum
from benchmarks.chaos.nodes import lose_nodes, most_in_stores, scene_of_nodes
from benchmarks.decoding import decode_whole
from serve_app.cli.demo import sample
from serve_app.transcript import SAMPLE_RATE_HZ

LENGTHS_S = [1.0, 20.0, 5.0, 2.5, 10.0, 60.0]
SLOW = 0.05  # seconds of device for a second of audio, so that audio stays in stores for some time
LONG_S = 130.0  # 4 MiB


def checksums() -> list[str]:
    """Of each window of the demo's file."""
    with sample().open("rb") as file:
        samples = asyncio.run(decode_whole(file, max_audio_s=600, timeout_s=60))[1]
    step = int(WINDOW_S * SAMPLE_RATE_HZ)
    return [f"{checksum(samples[at : at + step]):08x}" for at in range(0, len(samples), step)]


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = {"language": "en", "word_timestamps": "true"}
    demo = Clip("demo", 30.0, sample().read_bytes(), False, options)
    _, long_clip = mixed_clips([1.0, LONG_S], random.Random(2))  # the second one goes by URL
    clips = mixed_clips(LENGTHS_S, random.Random(1))
    with scene_of_nodes([*clips, long_clip, demo], SLOW, 0.005) as (graph, load, nodes):
        load.clips = [*clips, demo]
        stores = most_in_stores(load, nodes, long_clip)
        lost = lose_nodes(graph, load, nodes)
        answer = load.expected[demo.name]["model_output"]
    texts = [segment["text"] for segment in answer]
    print(
        json.dumps({"stores_mib": stores, "lost": lost, "demo_texts": texts, "demo_checksums": checksums()})
    )


if __name__ == "__main__":
    main()
