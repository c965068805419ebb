"""Runs inside FLARE's environment: provisions a POC with its own keys, starts it, submits the job, waits for its end."""

import argparse
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--mb", type=float, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--exchange", choices=["numpy", "pytorch"], required=True)
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--gc-rounds", type=int, required=True)
    parser.add_argument("--events", required=True)
    args = parser.parse_args()

    from nvflare.fuel.flare_api.flare_api import new_secure_session
    from nvflare.recipe import PocEnv
    from nvflare.tool.poc.poc_commands import _start_poc, prepare_poc_provision
    from timed_fedavg import emit

    env = PocEnv(num_clients=args.sites)
    prepare_poc_provision(
        clients=[], number_of_clients=args.sites, workspace=env.poc_workspace, docker_image=None
    )
    emit(args.events, "provisioned")
    _start_poc(poc_workspace=env.poc_workspace, gpu_ids=[], excluded=[env.username], services_list=[])
    session = new_secure_session(
        username=env.username, startup_kit_location=env._get_admin_startup_kit_path(), timeout=60
    )
    while len(session.get_connected_client_list()) < args.sites:
        time.sleep(0.2)
    emit(args.events, "connected")
    folder = os.path.join(os.path.dirname(env.poc_workspace), "job")
    build(args).export_job(folder)
    emit(args.events, "submitted")
    job = session.submit_job(os.path.join(folder, "noop"))
    while "FINISHED" not in (status := str(session.get_job_status(job))):
        time.sleep(1)
    print("job", job, status, flush=True)


def build(args):
    from nvflare.client.config import ExchangeFormat
    from nvflare.job_config.api import FedJob
    from nvflare.job_config.script_runner import FrameworkType, ScriptRunner
    from timed_fedavg import TimedFedAvg

    job = FedJob(name="noop", min_clients=args.sites)
    job.to_server(
        TimedFedAvg(
            events=args.events,
            mb=args.mb,
            exchange=args.exchange,
            num_clients=args.sites,
            num_rounds=args.rounds,
            offload=args.offload,
            gc_rounds=args.gc_rounds,
        )
    )
    job.to_clients(
        ScriptRunner(
            script=os.path.join(HERE, "noop_site.py"),
            framework=FrameworkType(args.exchange),
            server_expected_format=ExchangeFormat(args.exchange),
            memory_gc_rounds=args.gc_rounds,
        )
    )
    return job


if __name__ == "__main__":
    main()
