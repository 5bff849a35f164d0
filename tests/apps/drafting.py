"""A tiny random model to decode with, that can be held in the middle of a run, and a server with it."""

import threading

from dlopt.apps import server
from dlopt.apps.decoder import Decoder
from dlopt.experiments._tiny import ByteTokenizer, llama
from dlopt.speculative.costs import costs_of
from tests.apps.conftest import Running

# with these, drafts of prompt lookup are accepted, corrected and followed by a bonus token; some rounds have none
PROMPT = "Abc abc, abc? 春眠不觉晓 abc"
ASK = {"prompt": PROMPT, "drafter": "prompt-lookup", "gate": False, "length": 4, "tokens": 48}


class Held:
    """passes: of the model, so far. hold(n): after n more passes it waits, until free()."""

    def __init__(self):
        sizes = {"hidden_size": 32, "intermediate_size": 32, "max_position_embeddings": 400}
        self.model = llama(seed=3, **sizes).double()
        self.model.register_forward_pre_hook(self._pass)
        self.decoder = Decoder("tiny", self.model, ByteTokenizer())
        self.gate = threading.Event()
        self.passes, self.left = 0, 0
        self.free()
        costs_of(self.model)  # v(k) is known from here on: a run begins with a few passes that warm up

    def hold(self, passes):
        self.left = passes
        self.gate.clear()

    def free(self):
        self.gate.set()

    def _pass(self, model, arguments):
        if self.left <= 0:
            self.gate.wait(60)
        self.passes, self.left = self.passes + 1, self.left - 1


def serve(held):
    """The body of a fixture `running`: a server with that model, and no model of poems."""
    found = Running(server.create(None, missing="还没有写诗的模型", decoder=held.decoder))
    yield found
    held.free()
    found.stop()
