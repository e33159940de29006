"""Queue a Slurm job again that lost a process; the batch file of slurm_pretrain.py ends with it.

python scripts/slurm_requeue.py RUN_DIR CODE

CODE is srun's: that of a process that lost another, or 128 and the signal that one of them died of. The run
goes on from its newest checkpoint. Where none came since the last time, the job is queued again three times
at most. Ends with CODE, so that Slurm counts the job as failed.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

MOST_LOST = 3
"""How often in a row a job is queued again without a newer checkpoint."""
DEATHS = ("SIGKILL", "SIGABRT", "SIGSEGV", "SIGBUS")
"""KILL: of a full memory; ABRT: of NCCL's watchdog; BUS: of full shared memory."""
LOST = (75, *(128 + signal.Signals[name] for name in DEATHS))
"""75: as of `fcmae pretrain`."""


def requeue(run_dir: Path, code: int) -> str | None:
    """Queue this job again if it lost a process, and return what was done; None: nothing was lost.

    Args:
        run_dir: The run's folder; its `slurm/lost.json` counts.
        code: Exit code of srun.
    """
    if code not in LOST:
        return None
    job = os.environ["SLURM_JOB_ID"]
    state = _printed("squeue", "--noheader", "--jobs", job, "--format", "%T")
    if state != "RUNNING":
        return f"job {job} lost a process, exit code {code}, and is {state or 'gone'}: not queued again"
    counted, newest = run_dir / "slurm" / "lost.json", _newest(run_dir)
    before = json.loads(counted.read_text()) if counted.exists() else {"times": 0, "checkpoint": newest}
    times = 1 + (before["times"] if before["checkpoint"] == newest else 0)
    since = f"with {newest or 'no checkpoint'}"
    if times > MOST_LOST:
        return f"job {job} lost a process {times} times {since}: not queued again. See what it printed."
    counted.parent.mkdir(parents=True, exist_ok=True)
    counted.write_text(json.dumps({"times": times, "checkpoint": newest}))
    _printed("scontrol", "requeue", job)
    return f"job {job} lost a process, exit code {code}, {times} of {MOST_LOST} times {since}: queued again"


def _newest(run_dir: Path) -> str:
    return max((path.name for path in run_dir.glob("checkpoints/step_*.pt")), default="")


def _printed(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout.strip()


if __name__ == "__main__":
    code = int(sys.argv[2])
    line = requeue(Path(sys.argv[1]), code)
    if line is not None:
        print(f"slurm_requeue.py: {line}", file=sys.stderr)
    raise SystemExit(code)
