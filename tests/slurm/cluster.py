"""A real Slurm cluster of two nodes on this machine, for tests and, by `make slurm-dev`, to play with.

Everything it has (configuration, state, logs, munge's key and socket) lies in one temporary folder and its ports are
its own, so several clusters, and a Slurm or munge that this machine already runs, do not meet.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

NODES = ("node1", "node2")
DAEMONS = ("munged", "slurmctld", "slurmd")
START_TIMEOUT = 120.0
"""Seconds until both nodes are idle; 2 to 4 is usual."""
FINISHED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
FINISHED |= {"TIMEOUT"}
"""States that a job ends in. All others it goes on from; some, such as SIGNALING, are seen for an instant only."""
MARK = "FABRICANT_SLURM_CLUSTER"
"""Environment variable of every daemon and of the job steps they fork: which cluster's they are."""

# Two "GPUs" per node, so that --gres and CUDA_VISIBLE_DEVICES can be tried; four CPUs, whatever the machine has.
# A requeued job is held until its old credentials are void: cred_expire + 1 seconds, by default 121. A node is given
# up after SlurmdTimeout, 20 to 30 s after its slurmd's death. An ended job is remembered for MinJobAge.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=15
SlurmdTimeout=10
MessageTimeout=30
MinJobAge=3600
JobRequeue=1
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class ClusterError(RuntimeError):
    """The cluster does not start, or one of its commands fails."""


@dataclass(frozen=True)
class JobEnd:
    """How a job ended: Slurm's word for it, the batch script's exit code, and the signal that killed it (0: none)."""

    state: str
    exit_code: int
    signal: int


@dataclass(frozen=True)
class Cluster:
    """A running cluster; every command has a time limit, as Slurm's wait for ever where a node is down."""

    folder: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """In the order of their start; empty where another process started them (`make slurm-dev`)."""

    @property
    def configuration(self) -> Path:
        return self.folder / "slurm.conf"

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """This process's, less what an outer Slurm job may have set in it."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        return {**own, "SLURM_CONF": str(self.configuration), **(extra or {})}

    def run(
        self,
        *command: object,
        cwd: Path | None = None,
        extra: Mapping[str, str] | None = None,
        timeout: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs srun, sbatch, squeue, … on this cluster, with the environment variables `extra` added."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=cwd, env=self.environment(extra), capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode:
            raise ClusterError(f"{' '.join(words)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def submit(self, *arguments: object, cwd: Path, extra: Mapping[str, str] | None = None) -> int:
        """The id of a new batch job: `sbatch` with `arguments`."""
        return int(self.run("sbatch", "--parsable", *arguments, cwd=cwd, extra=extra).stdout.split(";")[0])

    def job(self, job_id: int) -> dict[str, str]:
        """What `scontrol show job` says, field → value; a job is known for an hour after its end."""
        text = self.run("scontrol", "--oneliner", "show", "job", job_id).stdout
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def wait(self, job_id: int, timeout: float) -> JobEnd:
        """Waits for the job's end; cancels it and raises a ClusterError if that does not come in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (job := self.job(job_id))["JobState"] not in FINISHED:
            if time.monotonic() > deadline:
                self.run("scancel", job_id, check=False)
                raise ClusterError(f"job {job_id} is still {job['JobState']} ({job['Reason']}) after {timeout:.0f} s")
            time.sleep(0.3)
        exit_code, number = job["ExitCode"].split(":")
        return JobEnd(job["JobState"], int(exit_code), int(number))

    def task_processes(self, job_id: int) -> dict[int, int]:
        """Rank → process id of what the job's tasks now run: the command itself, not slurm/task.sh around it."""
        found, of_job = {}, {"SLURM_CONF": str(self.configuration), "SLURM_JOB_ID": str(job_id)}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # ended in the meantime
                variables = _environment_of(process)
                if variables.items() >= of_job.items():
                    parent = re.search(r"^PPid:\t(\d+)$", (process / "status").read_text(), flags=re.MULTILINE)[1]
                    if b"slurm/task.sh\0" in (Path("/proc") / parent / "cmdline").read_bytes():
                        found[int(variables["SLURM_PROCID"])] = int(process.name)
        return found

    @contextmanager
    def node_lost(self, node: str) -> Iterator[None]:
        """Kills a node's slurmd; its jobs' processes live on, unseen by Slurm. Afterwards both nodes are idle again."""
        daemon = self.daemons[f"slurmd-{node}"]
        daemon.kill()
        daemon.wait(timeout=60)
        try:
            yield
        finally:
            self.start_slurmd(node)
            self.wait_until_idle()

    def start_slurmd(self, node: str) -> None:
        self.start(f"slurmd-{node}", "slurmd", "-D", "-N", node)

    def start(self, name: str, *command: str) -> None:
        """Starts a daemon in the foreground; `running_cluster` stops it."""
        own = {"PATH": _search_path(), "SLURM_CONF": str(self.configuration), MARK: str(self.folder)}
        with (self.folder / f"{name}.out").open("a") as output:
            self.daemons[name] = subprocess.Popen(
                command,
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the jobs before the daemons
            )

    def stop(self) -> None:
        """Stops all daemons, the first one last."""
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(timeout=1)  # slurmd would wait for its jobs' ends
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def wait_until_idle(self) -> None:
        self.wait_until(lambda: _idle_nodes(self) == len(NODES), "the nodes are not idle")

    def wait_until(self, condition: Callable[[], object], complaint: str, timeout: float = START_TIMEOUT) -> None:
        """Waits until `condition` holds; raises a ClusterError with the ends of the daemons' logs if it never does."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise ClusterError(f"{complaint} after {timeout:.0f} s\n{_ends_of_logs(self.folder)}")
            time.sleep(0.1)


def what_is_missing() -> str | None:
    """Why no cluster can be started here, in one line; None if it can."""
    missing = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=_search_path()) is None]
    if missing:
        return f"no Slurm on this machine ({', '.join(missing)} not found; Debian: apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "Slurm's daemons can be started by root only"
    return None


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Starts a cluster and takes it down, whatever happens in between; SIGTERM is as good as Ctrl-C meanwhile.

    Raises:
        ClusterError: with the ends of the daemons' logs, if the nodes are not idle in START_TIMEOUT seconds.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder)
    with ExitStack() as stack:
        stack.callback(_start_clearer(folder).communicate)
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        stack.callback(cluster.stop)
        _write_configuration(folder)
        cluster.start("munged", "munged", "--foreground", *_munge_options(folder))
        cluster.wait_until((folder / "munge" / "socket").exists, "munged has no socket")
        cluster.start("slurmctld", "slurmctld", "-D", "-c")
        for node in NODES:
            cluster.start_slurmd(node)
        stack.callback(_end_jobs, cluster)
        cluster.wait_until_idle()
        yield cluster


def _search_path() -> str:
    """PATH with the folders of daemons, which a plain user's may lack."""
    return os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    """Free TCP ports below those that the kernel hands out for outgoing connections."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports += [port] if port not in ports else []
    return ports


def _start_clearer(folder: Path) -> subprocess.Popen[bytes]:
    """A process that clears up what is left of the cluster when its stdin ends, be it by this process's `kill -9`."""
    command = [sys.executable, str(Path(__file__).resolve()), "--clear", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _write_configuration(folder: Path) -> None:
    folder.chmod(0o755)  # munge wants its socket to be within everybody's reach
    for name in ("state", "dev", "munge", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(mode=0o755)
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(folder=folder, host=host, ports=_free_ports(3))
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={folder}/dev/nvidia[0-1]\n")
    for number in (0, 1):
        # a device, or Slurm sets no CUDA_VISIBLE_DEVICES; this one is /dev/null's
        os.mknod(folder / "dev" / f"nvidia{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    key = folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))


def _munge_options(folder: Path) -> list[str]:
    names = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
    return [f"--{option}={folder}/munge/{name}" for option, name in names.items()]


def _idle_nodes(cluster: Cluster) -> int:
    try:
        done = cluster.run("sinfo", "--noheader", "--Node", "--format=%T", timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return 0
    return done.stdout.split().count("idle")


def _ends_of_logs(folder: Path) -> str:
    logs = sorted(path for path in (*folder.glob("*.log"), *folder.glob("*.out")) if path.stat().st_size)
    return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in logs)


def _end_jobs(cluster: Cluster) -> None:
    """Cancels all jobs and gives their processes a moment to end by themselves."""
    with suppress(subprocess.TimeoutExpired):
        cluster.run("scancel", "--quiet", "--user=root", timeout=5, check=False)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and cluster.run("squeue", "--noheader", timeout=5, check=False).stdout:
            time.sleep(0.2)


def _clear(folder: Path) -> None:
    """Kills daemons and job steps that outlived their stop, and what they started; removes the folder."""
    deadline = time.monotonic() + 10
    while (processes := marked_processes(folder)) and time.monotonic() < deadline:
        for process_id in processes:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def marked_processes(folder: Path) -> list[int]:
    """The ids of the cluster's daemons and of all processes of its jobs, told by their environment.

    Slurm's own daemons leave their parent's process group and session on purpose, and so may what a job starts.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended in the meantime
            variables = _environment_of(process)
            of_job = "SLURM_JOB_ID" in variables and variables.get("SLURM_CONF") == f"{folder}/slurm.conf"
            if of_job or variables.get(MARK) == str(folder):
                found.append(int(process.name))
    return found


def _environment_of(process: Path) -> dict[str, str]:
    """The variables that a process (`/proc/ID`) was started with."""
    words = os.fsdecode((process / "environ").read_bytes()).split("\0")
    return dict(word.partition("=")[::2] for word in words)


def main() -> int:
    """Starts a cluster, says how to use it, and keeps it until Ctrl-C or SIGTERM."""
    if sys.argv[1:2] == ["--clear"]:
        sys.stdin.read()
        _clear(Path(sys.argv[2]))
        return 0
    if reason := what_is_missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    with suppress(KeyboardInterrupt), running_cluster() as cluster:
        print(f"export SLURM_CONF={cluster.configuration}", flush=True)
        print(
            "Two nodes are up; Ctrl-C takes them down. In another shell: the line above, then sinfo.", file=sys.stderr
        )
        while True:
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
