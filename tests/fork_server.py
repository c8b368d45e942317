"""Short `python -m MODULE` processes that need not import torch: forks of an interpreter that has.

Imports are more than half of a tiny job's time. `forking(folder)` writes a `python` for the front of the PATH. It asks
a server for a fork, which has the caller's arguments, folder, environment, input and output, imports the project's own
modules itself, and gives its exit code back.
"""

import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, socket, sys
if sys.argv[1:2] != ["-m"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    # a pipe that the shell opened for us stays ours
    words = [word.replace("/dev/fd/", f"/proc/{{os.getpid()}}/fd/") for word in sys.argv[2:]]
    message = json.dumps([os.getcwd(), dict(os.environ), words]).encode()
    socket.send_fds(server, [len(message).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(message)
    sys.exit(int(server.recv(8) or b"1"))
"""
# what jobs and Snakemake import of other projects
HEAVY = """
accelerate datasets lm_eval.evaluator lm_eval.models.huggingface lm_eval.tasks matplotlib.pyplot
matplotlib.backends.backend_agg matplotlib.backends.backend_pdf mwparserfromhell pandas pyarrow.parquet pydantic
safetensors.torch scipy.stats snakemake.cli torch transformers.models.auto.modeling_auto
transformers.models.auto.tokenization_auto transformers.models.llama.modeling_llama
transformers.models.opt.modeling_opt yaml
"""


@contextmanager
def forking(folder: Path):
    """Write `folder`/python and run its server; yields the process group of the server and all forks.

    Without Linux's /proc nothing is written, and `python` is Python.
    """
    if sys.platform != "linux":
        yield None
        return
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as listening:  # 108 characters at most
        address = f"{short}/socket"
        listening.bind(address)
        listening.listen()
        server = subprocess.Popen(
            [sys.executable, __file__, str(listening.fileno())], pass_fds=[listening.fileno()], start_new_session=True,
            stdin=subprocess.PIPE,  # ends with this process
            # asking NVML whether there is a GPU leaves CUDA usable after a fork
            env=os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
        )  # fmt: skip
        listening.close()  # here: a server that ends refuses its callers
        (folder / "python").write_text(CLIENT.format(python=sys.executable, address=address))
        (folder / "python").chmod(0o755)
        try:
            yield server.pid
        finally:
            server.kill()
            server.communicate()
            (folder / "python").unlink()


def serve(listening: socket.socket) -> None:
    """Fork for every connection, as long as the tests that started this process run."""
    for name in HEAVY.split():
        __import__(name)
    while 0 not in select.select([listening, 0], [], [])[0]:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            run(connection)
        connection.close()
        with suppress(ChildProcessError):  # forks that ended; they answered their callers themselves
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def run(connection: socket.socket) -> None:
    """Be the process that the caller asked for, and end."""
    head, outputs, *_ = socket.recv_fds(connection, 8, 3)
    message = b""
    while len(message) < int.from_bytes(head, "big"):
        message += connection.recv(1 << 20)
    folder, environment, arguments = json.loads(message)
    for number, output in enumerate(outputs):
        os.dup2(output, number)
        os.close(output)
    # new streams: those of the server remember what kind of file they were opened on
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:1] = [folder, *environment.get("PYTHONPATH", "").split(":")]
    sys.argv = arguments
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    code = 0
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(code).encode())
    os._exit(code)


def end_with(connection: socket.socket) -> None:
    """A caller that is killed takes its fork along."""
    connection.recv(1)
    os._exit(1)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
