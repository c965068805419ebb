"""A site adds a little noise to what it got and returns it."""

import zlib

import numpy as np
import nvflare.client as flare


def add_noise(values, seed):
    """One random block of 64 Ki values, repeated over a copy."""
    block = np.random.default_rng(seed).standard_normal(65536, dtype=np.float32) * np.float32(1e-4)
    changed = np.array(values, dtype=np.float32)
    flat = changed.reshape(-1)
    whole = flat.size // block.size * block.size
    flat[:whole].reshape(-1, block.size)[:] += block
    flat[whole:] += block[: flat.size - whole]
    return changed


def train(values, seed):
    if isinstance(values, np.ndarray):
        return add_noise(values, seed)
    import torch

    return torch.from_numpy(add_noise(values.numpy(), seed))


def main():
    flare.init()
    site = flare.system_info()["site_name"]
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        seed = zlib.crc32(f"{site} {model.current_round}".encode())
        changed = {name: train(values, seed) for name, values in model.params.items()}
        meta = {"NUM_STEPS_CURRENT_ROUND": 1}
        flare.send(flare.FLModel(params=changed, params_type=flare.ParamsType.FULL, meta=meta))


if __name__ == "__main__":
    main()
