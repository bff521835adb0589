"""Files of tensors: checkpoints, weights, scores. Whole or known to be damaged; never executed."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from benchmark.record import RunDirectory


class Damaged(RuntimeError):
    """A file of tensors does not hold what was written, or nothing that may be read."""


def write_tensors(directory: RunDirectory, name: str, value: Any) -> None:
    """Write a file of tensors, all at once."""
    with directory.replacing(name) as path:
        dump(value, path)


def dump(value: Any, path: Path) -> None:
    """Write a temporary file of tensors, which somebody renames."""
    # By way of memory: of a full disk torch's own writer says no more than "unexpected pos".
    content = io.BytesIO()
    torch.save(value, content)
    path.write_bytes(content.getbuffer())


def read_tensors(path: Path, device: torch.device | str = "cpu") -> Any:
    """What `write_tensors` wrote; executes nothing, whoever wrote the file.

    Raises Damaged, and OSError where it cannot be read, which says nothing about what it holds.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(content) as archive:
            broken = archive.testzip()  # torch would load it: it does not check the sums
        if broken is None:
            content.seek(0)
            return torch.load(content, map_location=device, weights_only=True)
        reason = f"the checksum of {broken} is wrong"
    except pickle.UnpicklingError:  # whose text advises to load it all the same
        reason = "it holds more than tensors and plain values, which nobody should load"
    except Exception as error:  # wrong bytes may raise anything
        if out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
    raise Damaged(f"{path} is damaged ({reason})")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on a CPU torch has no class of errors for that."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator: can't allocate" in str(error)
