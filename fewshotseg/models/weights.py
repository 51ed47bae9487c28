"""Reads files of weights with NumPy: nothing in a file is executed, nothing is downloaded.

A PyTorch file is a pickle, and a pickle is a program. Here it may only rebuild the tensors of a state
dict; any other name in it is refused before it is looked up.
"""

import collections
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import pathlib
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg import errors

Tensors = dict[str, np.ndarray]

_TORCH = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip
_SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U8": "u1", "BOOL": "?",
}  # fmt: skip
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # of the layout before PyTorch 1.6


class Release(NamedTuple):
    """A file of weights that comes with an installed package.

    Attributes:
      package: as pip names it.
      module: as Python imports it; it is only located, never imported.
      file: path inside the module.
      sha256: of the file, in hexadecimal digits.
      licence: what to know of its terms, for people.
    """

    package: str
    module: str
    file: str
    sha256: str
    licence: str


def notice(release: Release) -> str:
    """A line for people: what is used, in which version, on what terms."""
    try:
        version = f" {importlib.metadata.version(release.package)}"
    except importlib.metadata.PackageNotFoundError:  # found beside, not by pip
        version = ""
    return f"Weights of {release.package}{version}: {release.licence}"


def read_release(release: Release, remedy: str) -> Tensors:
    """The tensors of an installed release, after its sha256 has been compared.

    Args:
      release: which.
      remedy: what else the user may do where it is not installed.

    Raises:
      InputError: it is not installed, or its file is not the one that is known.
    """
    spec = importlib.util.find_spec(release.module)
    if spec is None or not spec.submodule_search_locations:
        raise errors.InputError(
            f"the package {release.package} is not installed: pip install {release.package} (or "
            f"'fewshotseg[pretrained]'), or {remedy}."
        )
    path = pathlib.Path(spec.submodule_search_locations[0], release.file)
    return read(path, release.sha256)


def read(path: str | pathlib.Path, sha256: str = "") -> Tensors:
    """All tensors of a file, by name.

    Args:
      path: `.pth` or `.pt` (a state dict of PyTorch, both layouts), `.safetensors` or `.npz`.
      sha256: of the whole file; '' if any will do.

    Raises:
      InputError: no such file, another sha256, another kind of file, or not only tensors in it.
    """
    path = pathlib.Path(path)
    if path.suffix not in READERS:
        raise errors.InputError(f"{path}: weights are read from {', '.join(READERS)}.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise errors.InputError(f"{path}: cannot be read ({error.strerror}).") from error
    if sha256 and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise errors.InputError(
            f"{path}: its sha256 is {found[:12]}..., not {sha256[:12]}...: the file is damaged or "
            "another one. Install its package again."
        )
    try:
        return READERS[path.suffix](data)
    except Exception as error:  # a hostile file may raise anything in the parsers
        reason = str(error) or type(error).__name__
        raise errors.InputError(
            f"{path}: not a whole {path.suffix} file of tensors alone ({reason[:200]}). Save a plain "
            "state dict, or fetch the file again."
        ) from error


def take(
    tensors: Mapping[str, np.ndarray],
    table: Mapping[str, tuple[int, ...]],
    ignored: Iterable[str] = (),
) -> Tensors:
    """The tensors that a table names, as float32: each with its shape, and none left over.

    Args:
      tensors: from `read`.
      table: name -> shape.
      ignored: further names that may be there.

    Raises:
      InputError: a name is missing, has another shape, or is not known.
    """
    if missing := [name for name in table if name not in tensors]:
        raise errors.InputError(
            f"weights: {missing[0]!r} is missing ({len(missing)} of {len(table)} names are): these "
            "are of another network."
        )
    for name, shape in table.items():
        if tensors[name].shape != tuple(shape):
            raise errors.InputError(
                f"weights: {name!r} has shape {tensors[name].shape}, not {tuple(shape)}: these are of "
                "another network."
            )
    if unknown := sorted(tensors.keys() - table.keys() - set(ignored)):
        raise errors.InputError(
            f"weights: {unknown[0]!r} belongs nowhere ({len(unknown)} names do not): these are of "
            "another network."
        )
    return {name: np.asarray(tensors[name], np.float32) for name in table}


NORM_PARTS = ("weight", "bias", "running_mean", "running_var")  # of batch normalisation


def fold_norm(tensors: Mapping[str, np.ndarray], name: str, epsilon: float) -> dict[str, jax.Array]:
    """Batch normalisation as `scale = gamma / sqrt(variance + epsilon)`, `shift = beta - scale mean`."""
    gamma, beta, mean, variance = (tensors[f"{name}.{part}"] for part in NORM_PARTS)
    scale = gamma / np.sqrt(variance + epsilon)
    return {"scale": jnp.asarray(scale), "shift": jnp.asarray(beta - scale * mean)}


# --- PyTorch ---------------------------------------------------------------------------------------


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A tensor whose storage may not have been read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, data: bytes) -> np.ndarray:
        flat = np.frombuffer(data, self.storage.dtype)
        numbers = (self.offset, *self.shape, *self.strides)
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor with a negative shape, stride or offset")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        size = math.prod(self.shape)
        if size == 0:
            return np.zeros(self.shape, flat.dtype)
        if last >= flat.size or size > flat.size:
            raise ValueError("a tensor that reaches beyond its storage")
        steps = [s * flat.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps).copy()


class _Unpickler(pickle.Unpickler):
    """Knows what a state dict is made of, and nothing else."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _TORCH:
            return np.dtype(_TORCH[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid):
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(view):
            raise pickle.UnpicklingError("an unknown kind of storage")
        if type(size) is not int or size < 0:
            raise pickle.UnpicklingError("a storage of no size")
        return _Storage(str(key), dtype, size)


def _rebuild_tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _read_torch(data: bytes) -> Tensors:
    stored, read_storages = _open_zip(data) if data[:2] == b"PK" else _open_legacy(data)
    tensors = dict(stored)
    if list(tensors) in (["model"], ["state_dict"]):  # as many authors wrap it
        (tensors,) = map(dict, tensors.values())
    for name, tensor in tensors.items():
        if type(name) is not str or not isinstance(tensor, _Tensor):
            raise ValueError(f"{str(name)[:80]!r} is no tensor")
    storages = read_storages({t.storage.key: t.storage for t in tensors.values()})
    return {name: tensor.view(storages[tensor.storage.key]) for name, tensor in tensors.items()}


def _open_zip(data: bytes):
    archive = zipfile.ZipFile(io.BytesIO(data))
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise ValueError("it is compressed, as PyTorch never does")
    (root,) = (n[: -len("data.pkl")] for n in archive.namelist() if n.endswith("/data.pkl"))
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("it is big-endian")

    def read_storages(known):
        found = {key: archive.read(f"{root}data/{key}") for key in known}
        for key, storage in known.items():
            if len(found[key]) != storage.size * storage.dtype.itemsize:
                raise ValueError(f"storage {key} has another size than it says")
        return found

    return _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load(), read_storages


def _open_legacy(data: bytes):
    file = io.BytesIO(data)

    def load():
        return _Unpickler(file).load()

    if load() != _TORCH_MAGIC:
        raise ValueError("it does not begin as PyTorch files do")
    load()  # version of the protocol
    if not load()["little_endian"]:
        raise ValueError("it is big-endian")
    stored = load()

    def read_storages(known):
        found = {}
        for key in map(str, load()):
            size = int.from_bytes(file.read(8), "little", signed=True)
            if key not in known or size != known[key].size:
                raise ValueError(f"storage {key[:20]} has another size than it says, or no tensor")
            length = size * known[key].dtype.itemsize
            found[key] = file.read(length)
            if len(found[key]) != length:
                raise ValueError("it ends too early")
        return found

    return stored, read_storages


# --- The others ------------------------------------------------------------------------------------


def _read_safetensors(data: bytes) -> Tensors:
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ValueError("it ends too early")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        dtype, (start, end) = np.dtype(_SAFETENSORS[entry["dtype"]]), entry["data_offsets"]
        size = math.prod(entry["shape"]) * dtype.itemsize
        if not 0 <= start <= end <= len(body) or end - start != size:
            raise ValueError(f"{name!r} reaches beyond the file")
        tensors[name] = np.frombuffer(body[start:end], dtype).reshape(entry["shape"])
    return tensors


def _read_npz(data: bytes) -> Tensors:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


READERS = {
    ".pth": _read_torch, ".pt": _read_torch, ".safetensors": _read_safetensors, ".npz": _read_npz,
}  # fmt: skip
