"""Who speaks: voices for training, and voices that only the evaluation hears."""

import random

from tools.demo_models.synthesis import Line

FLITE = ["flite/slt", "flite/rms", "flite/awb", "flite/kal16"]
FESTIVAL = ["festival/cmu_us_slt_arctic_hts", "festival/kal_diphone"]
ESPEAK = [
    "espeak/" + name
    for name in """
    en-us en-us+m1 en-us+m2 en-us+m3 en-us+m4 en-us+m6 en-us+m7 en-us+f1 en-us+f2 en-us+f3 en-us+f4 en-us+Andy en-us+Annie
    en-us+Alicia en-us+belinda en-us+linda en-us+steph en-us+edward en-us+zac en-us+michel en-us+adam en-us+Alex
    en-us+Andrea en-us+antonio en-us+benjamin en-us+boris en-us+caleb en-us+ed en-us+Gene en-us+gustave en-us+Jacky
    en-us+john en-us+Lee en-us+marcelo en-us+Marco en-us+Mario en-us+Michael en-us+Mike en-us+pablo en-us+paul en-us+quincy
    en-us+rob en-us+robert en-us+steph2 en-us+anika en-us+norbert en-us+sandro en-us+shelby en-us+travis en-us+klatt2
    en-us+klatt4 en-gb-x-rp en-gb-x-rp+f2 en-gb-x-rp+m3 en-gb-x-rp+Annie en-gb-x-rp+Andrea en-gb-scotland
    en-gb-scotland+f3 en-gb-x-gbclan en-gb-x-gbclan+f4
    """.split()
]
# One voice of each engine, and of espeak a man and a woman more. flite's voices are festival's own, made small, so
# the pair counts as one engine: its unseen speaker is ked.
UNSEEN = ["festival/ked_diphone", "espeak/en-us+m5", "espeak/en-us+f5", "espeak/en-us+victor"]
SEEN_IN_EVALUATION = [
    ("flite/slt", "flite/rms"), ("flite/kal16", "espeak/en-us+f2"), ("flite/awb", "espeak/en-us+f1"),
    ("espeak/en-us", "flite/slt"), ("espeak/en-gb-x-rp", "espeak/en-us+Annie"), ("flite/rms", "espeak/en-gb-scotland+f3"),
]  # fmt: skip
UNSEEN_IN_EVALUATION = [("espeak/en-us+m5", "espeak/en-us+f5"), ("festival/ked_diphone",), ("espeak/en-us+victor", "espeak/en-us+f5")]
SHARE = {"flite": 0.45, "festival": 0.08, "espeak": 0.47}


def sample_line(rng: random.Random, text: str) -> Line:
    """`text` in a training voice at a random rate, pitch and liveliness."""
    engine = rng.choices(list(SHARE), list(SHARE.values()))[0]
    rate = rng.uniform(0.78, 1.18)
    if engine == "flite":
        return Line(rng.choice(FLITE), text, rate, rng.uniform(0.8, 1.25))
    if engine == "festival":
        return Line(rng.choice(FESTIVAL), text, rate)
    return Line(rng.choice(ESPEAK), text, rate, rng.uniform(0.6, 1.4), rng.uniform(0.5, 1.5))
