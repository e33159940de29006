"""Runs of several processes: forked from a server that has imported everything, in torchrun's environment."""

import multiprocessing
import os
import socket
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from fcmae.cli import main
from fcmae.config import FinetuneConfig, PretrainConfig
from fcmae.config_io import save_config

# Children of one server: each begins at once.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["fcmae.training.pretrain", "fcmae.training.finetune", "torch.distributed.fsdp", "processes"]
)


def start_processes(config: PretrainConfig | FinetuneConfig, count: int) -> list[BaseProcess]:
    """`fcmae pretrain` or `finetune`, by `count` processes; each prints to <run>-rank<r>.txt."""
    file = f"{config.run.dir}.yaml"
    save_config(config, file)
    command = "finetune" if isinstance(config, FinetuneConfig) else "pretrain"
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    processes: list[BaseProcess] = [
        _CONTEXT.Process(
            target=_run, args=(command, file, f"{config.run.dir}-rank{rank}.txt", environment, rank)
        )
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def run_processes(config: PretrainConfig | FinetuneConfig, count: int) -> Path:
    """The folder of a run that `count` processes have ended well."""
    processes = start_processes(config, count)
    for rank, process in enumerate(processes):
        process.join()
        assert process.exitcode == 0, output(config, rank)
    return Path(config.run.dir)


def output(config: PretrainConfig | FinetuneConfig, rank: int) -> str:
    """What one process has printed."""
    return Path(f"{config.run.dir}-rank{rank}.txt").read_text()


def _run(command: str, config_file: str, output_file: str, environment: dict[str, str], rank: int) -> None:
    torch.set_num_threads(1)
    if environment["WORLD_SIZE"] != "1":
        os.environ.update(
            environment,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            GROUP_RANK="0",
            LOCAL_WORLD_SIZE=environment["WORLD_SIZE"],
            TORCHELASTIC_RUN_ID="test",
        )
    with Path(output_file).open("w") as file, redirect_stdout(file), redirect_stderr(file):
        code = main([command, "--config", config_file])
    raise SystemExit(code)
