"""Write files atomically: a reader sees the old file or the whole new one, also if this process is killed.

A temporary file is in a hidden folder next to its target. The folder's name has the process, so a later run can remove
the files of a killed one.
"""

import errno
import glob
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shadowcore import processes
from shadowcore.errors import ArtifactError

ABANDONED = 3600.0  # seconds without a change after which an unfinished file counts as left over from a killed run
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically: yield a temporary path, which is renamed to `path` if the block raises no error.

    The temporary path is in a hidden folder next to `path`, because libraries such as safetensors put temporary files
    of their own next to the file that they write. Raises ArtifactError if the disk is full or cannot be written; the
    old file stays then.
    """
    path = Path(path)
    with writable(path):
        folder = temporary_neighbour(path)
        folder.mkdir()
        partial = folder / path.name
        try:
            yield partial
            with open(partial, "rb+") as handle:
                os.fsync(handle.fileno())
            apply_umask(partial, folder)
            os.replace(partial, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def apply_umask(path: Path, own_folder: Path) -> None:
    """Give a file, or all files below a folder, the permissions of the user's umask.

    safetensors makes its files readable for their owner only. own_folder: a folder that this process has made; its
    permissions show the umask, which the system only returns by changing it for every thread. Links and files with
    several hard links stay as they are, because they are other people's files.
    """
    mode = own_folder.stat().st_mode & 0o666
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        status = file.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and stat.S_IMODE(status.st_mode) != mode:
            file.chmod(mode)


def temporary_neighbour(path: Path) -> Path:
    """A unique hidden path next to `path`, also on a cluster; those that killed runs left there are removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    return path.with_name(f".{path.name}.{processes.name()}-{secrets.token_hex(4)}.partial")


def remove_abandoned(path: Path) -> None:
    """Remove the temporary files for `path` that killed runs have left.

    Their names hold machine and process. A process of this machine that has ended writes no more. A process of
    another machine may still be writing, so its files are removed when they have not changed for an hour.
    """
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        writer = partial.name.removesuffix(".partial").rpartition(".")[2].rpartition("-")[0]
        try:
            files = [partial, *partial.rglob("*")] if partial.is_dir() else [partial]
            changed = max(file.lstat().st_mtime for file in files)
            if processes.gone(writer) or time.time() - changed > ABANDONED:
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        except (FileNotFoundError, PermissionError):  # another process has removed it, or another user owns it
            pass


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Raise ArtifactError if the block fails because the disk is full or cannot be written."""
    try:
        yield
    except Exception as error:  # tokenizers raises a plain Exception, with the system's error number in its text
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else getattr(error, "errno", None)
        if code not in UNWRITABLE:
            raise
        raise ArtifactError(
            f"{path}: cannot be written ({os.strerror(code)}); earlier files are unchanged; free space or allow "
            "writing, and run the study again: it continues from here"
        ) from None
