"""Flower's own FedAvg over 16 fp32 tensors; it only tells when its rounds begin and end."""

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from noop_app.events import emit

app = ServerApp()


class TimedFedAvg(FedAvg):
    events = ""

    def configure_train(self, server_round, arrays, config, grid):
        emit(self.events, "round_start", round=server_round)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        failed = [message.error.reason for message in replies if message.has_error()]
        combined = super().aggregate_train(server_round, replies)
        emit(self.events, "round_end", round=server_round, replies=len(replies), failed=failed)
        return combined


@app.main()
def main(grid, context):
    config = context.run_config
    emit(config["events"], "running")
    count = max(1, int(config["mb"] * 1e6 / 4 / config["tensors"]))
    random = np.random.default_rng(0)
    arrays = ArrayRecord(
        {f"t{i}": Array(random.standard_normal(count, dtype=np.float32)) for i in range(config["tensors"])}
    )
    sites = int(config["sites"])
    strategy = TimedFedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    strategy.events = config["events"]
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=int(config["rounds"]))
    emit(config["events"], "done")
