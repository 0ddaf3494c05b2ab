"""The tritonserver of the nvidia-pytriton wheel, serving the model repository from the Python backend on the CPU."""

import hashlib
import importlib.util
import os
import re
import sys
import sysconfig
import urllib.request
from pathlib import Path

from models import contract
from models.contract import ITEM_ENCODER, USER_INTERESTS
from stream.embedded.process import Server, folder_of, port_for, spawn
from stream.errors import UserError
from stream.settings import Settings, variable

MODELS = (ITEM_ENCODER, USER_INTERESTS)
REGION_BYTES = 4 << 20  # shared memory that a model instance starts with; it grows by itself
EXIT_TIMEOUT = 5  # seconds for requests under way when it is told to stop
SHARED_MEMORY = Path("/dev/shm")


def check(settings: Settings) -> None:
    """Raise a `UserError` for what cannot work, before anything is started."""
    wheel = _wheel()
    repository = _repository(settings)
    _ports(settings)
    for path, source in (
        (settings.data_folder.resolve(), variable("data_folder")),
        (repository, variable("model_repository")),
        (wheel, "the Python environment"),
    ):
        _refuse_odd(path, source)


def start(settings: Settings) -> Server:
    """A Triton whose models are ready; its address is the gRPC endpoint, host:port."""
    wheel, repository = _wheel(), _repository(settings)
    folder = folder_of(settings, "triton")
    grpc, http, metrics = _ports(settings)
    regions = region_prefix(folder)
    clean(regions)
    command = [
        str(wheel / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={_backends(wheel, folder)}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in MODELS),
        f"--backend-config=python,shm-region-prefix-name={regions}",
        f"--backend-config=python,shm-default-byte-size={REGION_BYTES}",
        *(f"--{kind}-port={port}" for kind, port in (("grpc", grpc), ("http", http), ("metrics", metrics))),
        *(f"--{kind}-address=127.0.0.1" for kind in ("grpc", "http", "metrics")),
        f"--exit-timeout-secs={EXIT_TIMEOUT}",
        "--disable-auto-complete-config",
    ]
    server = spawn("Triton", f"127.0.0.1:{grpc}", folder, command, _environment(wheel, folder))
    try:
        return server.wait_ready(lambda: _serves(http), settings.start_timeout)
    except UserError:
        clean(regions)
        raise


def _refuse_odd(path: Path, source: str) -> None:
    """tritonserver hands paths to a shell, and embeds a Python that reads them as ASCII."""
    if not re.fullmatch("[!-~]+", str(path)):
        raise UserError(f"{source}={path}: Triton needs a path of ASCII letters without spaces: use another folder")


def region_prefix(folder: Path) -> str:
    """What the names of the server's shared-memory regions begin with: its own, as the folder is."""
    return f"facetstream_{hashlib.sha256(bytes(folder.resolve())).hexdigest()[:12]}_"


def clean(regions: str) -> None:
    """Remove what a killed tritonserver left in shared memory."""
    for region in SHARED_MEMORY.glob(f"{regions}*"):
        region.unlink(missing_ok=True)


def _wheel() -> Path:
    spec = importlib.util.find_spec("pytriton")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (Path(folder) / "tritonserver" / "bin" / "tritonserver").exists():
            return Path(folder) / "tritonserver"
    raise UserError(
        "no tritonserver here: pip install 'facetstream[models,embedded]' on Linux, or set FACETSTREAM_TRITON_URL"
    )


def _repository(settings: Settings) -> Path:
    repository = settings.model_repository.resolve()
    absent = [name for name in MODELS if not (repository / name / "config.pbtxt").exists()]
    if absent:
        raise UserError(f"{variable('model_repository')}={repository} holds no model {' or '.join(absent)}")
    return repository


def _ports(settings: Settings) -> tuple[int, int, int]:
    """Of gRPC, HTTP and metrics."""
    return (
        port_for(settings, "triton_port"),
        port_for(settings, "triton_http_port"),
        port_for(settings, "triton_metrics_port"),
    )


def _backends(wheel: Path, folder: Path) -> Path:
    """A backend directory as tritonserver wants it: library, helper and the stub of this CPython side by side."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True, exist_ok=True)
    for source in (
        wheel / "backends" / "python" / "libtriton_python.so",
        wheel / "backends" / "python" / "triton_python_backend_utils.py",
        wheel / "python_backend_stubs" / python / "triton_python_backend_stub",
    ):
        _link(backend / source.name, source)
    return backend.parent


def _environment(wheel: Path, folder: Path) -> dict[str, str]:
    """Where the server finds its libraries and libpython, and the Python that its stubs are to be."""
    libraries = (sysconfig.get_config_var("LIBDIR"), wheel.parent.parent / "nvidia_pytriton.libs")
    return {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PATH": f"{_virtual_environment(wheel, folder)}:{os.environ.get('PATH', os.defpath)}",
    }


def _virtual_environment(wheel: Path, folder: Path) -> Path:
    """The bin folder of an environment with the wheels beside pytriton's and our `models`.

    A stub embeds CPython, pays no heed to PYTHONPATH and PYTHONHOME, and takes for home the first python3 of the PATH.
    """
    home, interpreter = folder / "python", Path(sys.executable).resolve()
    packages = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True, exist_ok=True)
    (home / "bin").mkdir(exist_ok=True)
    (home / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\n")
    _link(home / "bin" / "python3", interpreter)
    paths = (wheel.parent.parent, Path(contract.__file__).parent.parent)
    (packages / "facetstream.pth").write_text("\n".join(map(str, paths)) + "\n")
    return home / "bin"


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _serves(http: int) -> bool:
    """Whether every model is ready."""
    try:
        for name in MODELS:
            urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/models/{name}/ready", timeout=1).close()
    except OSError:
        return False
    return True
