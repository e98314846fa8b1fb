"""What every test shares: one thread, no hub, no network, and where real data and models lie."""

import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_DATASETS_DISABLE_PROGRESS_BARS="1")

import ipaddress
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _real(variable, default):
    "A folder of real data or models; the test is skipped, saying so, where there is none."
    folder = (ROOT / os.environ.get(variable, default)).resolve()
    if not folder.is_dir(): pytest.skip(f"no real data at {folder}; set {variable} to where it lies")
    return folder


@pytest.fixture(scope="session")
def slices() -> Path:
    "Slices of real data sets (RLGEN_SLICES)."
    return _real("RLGEN_SLICES", "../shared/data")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    "Real pretrained models (RLGEN_MODELS)."
    return _real("RLGEN_MODELS", "../shared/models")


@pytest.fixture(scope="module")
def double():
    "64-bit floats on the CPU."
    from rlgen.core import settings
    with pytest.MonkeyPatch.context() as m:
        m.setenv("RLGEN_DTYPE", "float64")
        m.setenv("RLGEN_DEVICE", "cpu")
        settings.cache_clear()
        yield
    settings.cache_clear()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "folders(arch, head, **config): a random-weight model's folder, each made once."
    from tiny_models import make_model
    made = {}

    def get(arch, head="lm", **config):
        key = (arch, head, *config.items())
        if key not in made: made[key] = make_model(arch, tmp_path_factory.mktemp(f"{arch}-{head}"), head=head, **config)
        return made[key]

    return get


def _loopback(address) -> bool:
    "Is it this machine? Unix sockets (text, bytes) are; names count only as `localhost`."
    if not isinstance(address, tuple): return True
    host = str(address[0]).split("%")[0]
    try: return host in ("", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError: return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "A connection to any other machine raises; one that somebody swallows fails the test at its end."
    tried = []

    def guarded(original):
        def connect(self, address, *args):
            if not _loopback(address):
                tried.append(address)
                raise OSError(f"tests use no network, yet something connects to {address}")
            return original(self, address, *args)

        return connect

    for name in ("connect", "connect_ex"): monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
    yield tried
    assert not tried, f"network used: {tried}"
