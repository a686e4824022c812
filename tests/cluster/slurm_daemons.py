"""A Slurm of several nodes on this machine, for the length of a test: no systemd, no cgroups."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NEEDED = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
SYSTEM_CONF = Path("/etc/slurm/slurm.conf")

CONF = """
ClusterName=vitatlas
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
SlurmctldPort=26817
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
SlurmdTimeout={timeout}
KillWait=2
MinJobAge=300
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def reason_against() -> str | None:
    """Why no Slurm can be started here; `None` where it can."""
    missing = [name for name in NEEDED if shutil.which(name, path=_path()) is None]
    if missing:
        packages = "apt-get install --no-install-recommends slurm-wlm munge"
        return f"no Slurm here ({', '.join(missing)} missing): {packages}"
    if os.geteuid() != 0:
        return "starting a Slurm needs root"
    if SYSTEM_CONF.exists() and not SYSTEM_CONF.is_symlink():
        return f"this machine has a Slurm of its own ({SYSTEM_CONF})"
    return None


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"


class Slurm:
    """Daemons of a cluster in a folder of their own; `stop` ends every one that was started."""

    def __init__(self, folder: Path, nodes: int = 3, timeout: int = 10) -> None:
        self.folder = folder
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        host = socket.gethostname().split(".")[0]
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={27000 + number} "
            "CPUs=2 RealMemory=6000 State=UNKNOWN"
            for number, name in enumerate(self.nodes)
        ]
        (folder / "state").mkdir(parents=True)
        for name in self.nodes:
            (folder / f"spool.{name}").mkdir()
        self.conf = folder / "slurm.conf"
        self.conf.write_text(
            CONF.format(host=host, folder=folder, nodes="\n".join(lines), timeout=timeout)
        )
        (folder / "cgroup.conf").write_text("")
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf), "PATH": _path()}
        self._munge: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemons and wait until every node is idle."""
        SYSTEM_CONF.parent.mkdir(parents=True, exist_ok=True)
        SYSTEM_CONF.unlink(missing_ok=True)
        SYSTEM_CONF.symlink_to(self.conf)
        if self.call("munge", "-n", check=False).returncode:
            run = Path("/run/munge")
            run.mkdir(mode=0o755, exist_ok=True)
            shutil.chown(run, "munge", "munge")
            command = ["runuser", "-u", "munge", "--", "munged", "--foreground"]
            self._munge = subprocess.Popen(
                command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            wait_for(lambda: not self.call("munge", "-n", check=False).returncode, 20, "munged")
        self.call("slurmctld", "-f", str(self.conf))
        for name in self.nodes:
            self.start_node(name)
        idle = ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"]
        wait_for(lambda: len(self.call(*idle).stdout.split()) == len(self.nodes), 60, "nodes")

    def start_node(self, name: str) -> None:
        self.call("slurmd", "-f", str(self.conf), "-N", name)

    def kill_node(self, name: str) -> None:
        """End a node as a power cut would: its daemon and all processes below it."""
        daemon = int((self.folder / f"slurmd.{name}.pid").read_text())
        for pid in [daemon, *self._steps(name)]:
            for process in [*descendants(pid), pid]:
                _kill(process)

    def running_on(self, name: str) -> list[str]:
        """Numbers of the jobs that run on a node."""
        return self.call("squeue", "-h", "-t", "R", "-w", name, "-o", "%i").stdout.split()

    def node_that_runs(self, rule: str) -> str | None:
        """A node on which the script of a rule runs."""
        for name in self.nodes:
            below = [pid for step in self._steps(name) for pid in descendants(step)]
            if any(f".{rule}.py" in _command(pid) for pid in below):
                return name
        return None

    def restarts(self) -> int:
        """How often jobs were queued again after their node failed."""
        return self._logged("requeue job")

    def submitted(self) -> int:
        """How many jobs were handed in."""
        return self._logged("_slurm_rpc_submit_batch_job: jobid")

    def _logged(self, what: str) -> int:
        log = (self.folder / "slurmctld.log").read_text()
        return sum(what in line.lower() for line in log.splitlines())

    def start_requeued(self) -> None:
        """Start jobs that wait for some minutes because their node failed."""
        waiting = self.call("squeue", "-h", "-t", "PD", "-o", "%i %r").stdout
        for line in waiting.splitlines():
            if "BeginTime" in line:
                self.call("scontrol", "update", f"JobId={line.split()[0]}", "StartTime=now")

    def _steps(self, name: str) -> list[int]:
        """Daemons of the steps that run on a node; they are no children of its slurmd."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                links = {os.readlink(link) for link in (entry / "fd").iterdir()}
            except OSError:
                continue
            if _command(int(entry.name)).startswith("slurmstepd:") and any(
                str(self.folder / f"spool.{name}") in link or f"slurmd.{name}.log" in link
                for link in links
            ):
                found.append(int(entry.name))
        return found

    def stop(self) -> None:
        """End all jobs and all daemons that were started."""
        self.call("scancel", "--state=RUNNING", "--user=root", check=False)
        self.call("scancel", "--state=PENDING", "--user=root", check=False)
        time.sleep(1)
        for path in [*self.folder.glob("slurmd.*.pid"), self.folder / "slurmctld.pid"]:
            if path.exists() and path.read_text().strip():
                _kill(int(path.read_text()), signal.SIGTERM)
        if self._munge is not None:
            self._munge.terminate()
        if SYSTEM_CONF.is_symlink():
            SYSTEM_CONF.unlink()

    def call(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not ready after {seconds:.0f} s")
        time.sleep(0.25)


def descendants(pid: int) -> list[int]:
    """Processes below one, the deepest first."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [*descendants(child), child]
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
