"""Who speaks: voices for training, and voices that only the evaluation hears."""

import random

from tools.demo_models.synthesis import Line

FLITE = ["flite/slt", "flite/rms", "flite/awb"]
FESTIVAL = ["festival/cmu_us_slt_arctic_hts", "festival/ked_diphone"]
_ESPEAK_NAMES = """
en-us en-us+m1 en-us+m2 en-us+m3 en-us+m4 en-us+m6 en-us+m7 en-us+f1 en-us+f2 en-us+f3 en-us+f4 en-us+Andy
en-us+Annie en-us+belinda en-us+linda en-us+edward en-us+michel en-us+adam en-us+Alex en-us+antonio
en-us+benjamin en-us+boris en-us+ed en-us+john en-us+Mike en-us+pablo en-us+paul en-us+quincy en-us+robert
en-us+steph2 en-gb-x-rp en-gb-x-rp+f2 en-gb-x-rp+m3 en-gb-scotland en-gb-scotland+f3
"""
ESPEAK = [f"espeak/{name}" for name in _ESPEAK_NAMES.split()]
# One speaker of flite and of festival (kal: a speaker both have, so both go without), three of espeak.
UNSEEN = ["flite/kal16", "festival/kal_diphone", "espeak/en-us+m5", "espeak/en-us+f5", "espeak/en-us+victor"]
SHARE = {"flite": 0.42, "festival": 0.16, "espeak": 0.42}


def sample_line(rng: random.Random, text: str) -> Line:
    """`text` in a training voice at a random rate, pitch and liveliness."""
    engine = rng.choices(list(SHARE), list(SHARE.values()))[0]
    rate = rng.uniform(0.78, 1.18)
    if engine == "flite":
        return Line(rng.choice(FLITE), text, rate, rng.uniform(0.75, 1.3))
    if engine == "festival":
        return Line(rng.choice(FESTIVAL), text, rate, rng.uniform(0.75, 1.3))
    return Line(rng.choice(ESPEAK), text, rate, rng.uniform(0.6, 1.4), rng.uniform(0.5, 1.5))
