"""FLARE's own FedAvg over 16 fp32 tensors; it only makes the first model and tells when its rounds begin and end."""

import json
import os
import time

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.fedavg import FedAvg

TENSORS = 16


def emit(path, event, **more):
    line = json.dumps({"event": event, "at": time.time(), **more}) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


class TimedFedAvg(FedAvg):
    def __init__(self, events, mb, exchange, num_clients, num_rounds, offload, gc_rounds):
        super().__init__(
            persistor_id="",
            num_clients=num_clients,
            num_rounds=num_rounds,
            enable_tensor_disk_offload=offload,
            memory_gc_rounds=gc_rounds,
        )
        self.events, self.mb, self.exchange = events, mb, exchange
        self.offload, self.gc_rounds = offload, gc_rounds
        self._round = 0

    def load_model(self):
        emit(self.events, "running")
        count = max(1, int(self.mb * 1e6 / 4 / TENSORS))
        random = np.random.default_rng(0)
        params = {f"t{i}": random.standard_normal(count, dtype=np.float32) for i in range(TENSORS)}
        if self.exchange == "pytorch":
            import torch
            from nvflare.app_opt.pt.decomposers import TensorDecomposer
            from nvflare.fuel.utils import fobs

            fobs.register(TensorDecomposer)
            params = {name: torch.from_numpy(values) for name, values in params.items()}
        return FLModel(params=params)

    def send_model(self, *args, **more):
        self._round += 1
        emit(self.events, "round_start", round=self._round)
        return super().send_model(*args, **more)

    def update_model(self, *args, **more):
        updated = super().update_model(*args, **more)
        emit(self.events, "round_end", round=self._round, replies=self._received_count, failed=[])
        return updated

    def save_model(self, model):
        if self._round >= self.num_rounds:
            emit(self.events, "done")
