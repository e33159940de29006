"""`fcmae pretrain` as a Slurm job: preempted or out of time, it saves, queues and goes on by itself.

python scripts/slurm_pretrain.py --partition gpu --minutes 1440 -- --config FILE --run.devices=8 --run.nodes=2

Slurm starts run.devices processes on each of run.nodes nodes. What stands behind -- is what `fcmae pretrain`
takes. A job that loses a process or a node is queued again, too; see slurm_requeue.py. Needs submitit:
pip install 'fcmae[slurm]'.
"""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcmae.arguments import OptionParser
from fcmae.config import PretrainConfig
from fcmae.config_io import load_scaled
from fcmae.errors import InputError, ProcessLostError, Stopped

REQUEUE = signal.SIGUSR2
"""What submitit lets Slurm send before the end, and what makes its first process queue the job again."""
LOST = 75
"""Exit code of a process that lost another, as of `fcmae pretrain`."""
MOST_RUNS = 10_000
"""How often a job may run out of its time before submitit leaves it."""


class Pretraining:
    """A pretraining run that submitit can start again: it goes on from its newest checkpoint.

    Args:
        argv: The arguments of `fcmae pretrain`.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)

    def __call__(self) -> str:
        """Run to the end, or until all processes have saved at Slurm's request; the run's folder."""
        from fcmae.training.pretrain import pretrain

        config, _ = load_scaled(PretrainConfig, self.argv)
        try:
            pretrain(config)
        except Stopped as stop:
            if stop.request == "SIGTERM":  # scancel's: the user does not want it again
                raise
            signal.raise_signal(REQUEUE)  # submitit's own handler is back in its place
        except ProcessLostError as lost:
            # The first process, which alone may queue for submitit, can be the lost one: the batch file will.
            print(f"slurm_pretrain.py: {lost}", file=sys.stderr)
            raise SystemExit(LOST) from None
        return config.run.dir

    def checkpoint(self) -> Any:
        """What submitit queues: the same run."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(argv: Sequence[str]) -> Any:
    """Submit the job that the arguments describe, and return submitit's Job.

    Raises:
        InputError: options or configuration cannot be used, or submitit is not installed.
    """
    arguments = list(argv)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = OptionParser("slurm_pretrain.py", __doc__)
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: this machine.")
    parser.add_argument("--partition", help="Slurm's.")
    parser.add_argument("--minutes", type=int, default=1440, help="Time until the job is queued again.")
    parser.add_argument("--cpus-per-process", type=int, default=8, help="Cores, for the data loader too.")
    parser.add_argument("--save-seconds", type=int, default=120, help="Time to finish a step and save.")
    parser.add_argument("--account", help="Slurm's.")
    options = parser.parse_args(arguments[:split])
    pretraining = Pretraining(arguments[split + 1 :])
    config, scaled = load_scaled(PretrainConfig, pretraining.argv)  # a mistake should not wait in the queue
    if scaled is not None:
        print(scaled)
    run = config.run
    if options.cluster == "local" and run.devices * run.nodes > 1:
        raise InputError(
            f"run.devices: expected one process with --cluster local, got {run.devices} x {run.nodes} nodes. "
            "Use fcmae pretrain itself on one machine."
        )
    try:
        import submitit
    except ImportError:
        raise InputError(
            "submitit: expected it to be installed, got none. Run: pip install 'fcmae[slurm]'."
        ) from None
    executor = submitit.AutoExecutor(
        Path(run.dir, "slurm"), cluster=options.cluster, slurm_max_num_timeout=MOST_RUNS
    )
    executor.update_parameters(
        name=Path(run.dir).name,
        timeout_min=options.minutes,
        nodes=run.nodes,
        tasks_per_node=run.devices,
        gpus_per_node=0 if run.accelerator == "cpu" or options.cluster == "local" else run.devices,
        cpus_per_task=options.cpus_per_process,
        slurm_signal_delay_s=options.save_seconds,
        slurm_additional_parameters={"requeue": True},  # by Slurm itself, after the failure of a node
        slurm_teardown=[_requeue_command(run.dir)],
        **{
            f"slurm_{name}": getattr(options, name)
            for name in ("partition", "account")
            if getattr(options, name) is not None
        },
    )
    return executor.submit(pretraining)


def _requeue_command(run_dir: str) -> str:
    """What the batch file does when all processes have ended; `$?` is the exit code of srun."""
    script = Path(__file__).resolve().with_name("slurm_requeue.py")
    words = (sys.executable, str(script), str(Path(run_dir).resolve()))
    return f"{' '.join(map(shlex.quote, words))} $?"


if __name__ == "__main__":
    try:
        job = submit(sys.argv[1:])
    except InputError as error:
        raise SystemExit(f"slurm_pretrain.py: {error}") from None
    print(f"job {job.job_id}; what it prints: {job.paths.stdout} and {job.paths.stderr}")
