"""A site adds a little noise to what it got and returns it."""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def add_noise(values, seed):
    """One random block of 64 Ki values, repeated over a copy."""
    block = np.random.default_rng(seed).standard_normal(65536, dtype=np.float32) * np.float32(1e-4)
    changed = values.copy()
    flat = changed.reshape(-1)
    whole = flat.size // block.size * block.size
    flat[:whole].reshape(-1, block.size)[:] += block
    flat[whole:] += block[: flat.size - whole]
    return changed


@app.train()
def train(message, context):
    seed = (context.node_id ^ message.content["config"]["server-round"]) & 0x7FFFFFFF
    arrays = message.content["arrays"]
    changed = ArrayRecord({name: Array(add_noise(array.numpy(), seed)) for name, array in arrays.items()})
    content = RecordDict({"arrays": changed, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)
