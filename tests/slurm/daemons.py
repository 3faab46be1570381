"""Munge, slurmctld and slurmd with one node on loopback, all of whose files are in a folder."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from functools import partial

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo", "scancel")
CONFIGURATION = """
ClusterName=exitbench
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=40000 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """What has to be installed before Slurm can be started; empty where all is there."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)}: not installed; apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons are started as root"


@contextmanager
def slurm(folder, patience=60.0):
    """Slurm in ``folder``: the variables with which its commands find it."""
    host = socket.gethostname()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, controller=_free_port(), node=_free_port()))
    variables = {**os.environ, "SLURM_CONF": str(configuration), "PATH": _path()}
    files = {name: f"{folder}/munge.{name}" for name in ("socket", "pid", "log", "seed")}
    options = [f"--{name}{'' if name == 'socket' else '-file'}={file}" for name, file in files.items()]
    with ExitStack() as stack:
        for command in (
            ["munged", "--foreground", "--force", f"--key-file={key}", *options],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", host],
        ):
            log = stack.enter_context((folder / f"{command[0]}.out").open("w"))
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            if command[0] == "munged":
                _wait((folder / "munge.socket").exists, patience)
        state = ["sinfo", "--noheader", "--format=%T"]
        ask = partial(subprocess.run, state, env=variables, capture_output=True, text=True, check=False)
        _wait(lambda: ask().stdout == "idle\n", patience)
        yield variables


def _path():
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait(condition, patience):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "Slurm doesn't start; see its logs"
        time.sleep(0.2)
