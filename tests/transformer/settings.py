"""Small settings that the tests of the models walk over."""

from dlopt.transformer.config import CHOICES, TransformerConfig

POSITIONS = CHOICES["positions"]
PATTERNS = {
    "full": {},
    "local": {"attention": "local", "window": 4},
    "strided": {"attention": "strided", "stride": 3},
    "strided, window of the code": {"attention": "strided", "stride": 3, "window": 3},
    "fixed": {"attention": "fixed", "stride": 4, "summary": 2},
    "strided by layers": {"attention": "strided", "stride": 3, "mixing": "layers"},
    "fixed by layers": {"attention": "fixed", "stride": 4, "summary": 1, "mixing": "layers"},
}
PAIRS = [(p, a) for p in POSITIONS for a in PATTERNS if p != "shaw" or a == "full"]
VOCABULARY = 11


def config(positions="rope", pattern="full", **options):
    small = {"width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 24, "max_length": 32, "shaw_clip": 3}
    return TransformerConfig(VOCABULARY, positions=positions, **{**small, **PATTERNS[pattern], **options})
