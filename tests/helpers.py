"""What tests of several systems share: a machine of their own, runs that are started in it, and the one line that a mistake is answered with."""

import importlib
from pathlib import Path

import pytest

from rlgen.core import RlgenError, settings
from rlgen.record import check_params

ROOT = Path(__file__).resolve().parents[1]


def line_of(call, *args, **kw) -> str:
    "The error's text, which has to be one line."
    with pytest.raises(RlgenError) as e: call(*args, **kw)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    return str(e.value)


def environment(folder: Path, **more: str) -> dict:
    "Settings of a machine whose cache and results lie in `folder`."
    return {"RLGEN_CACHE_DIR": str(folder / "cache"), "RLGEN_RESULTS_DIR": str(folder / "results"), "RLGEN_NUM_PROCESSES": "1", "RLGEN_DEVICE": "cpu", "RLGEN_DTYPE": "float32"} | more


def working_in(folder: Path, patch: pytest.MonkeyPatch, algo: str):
    "This process works in a folder: begin(**params) gives a run of the system that was started."
    for k, v in environment(folder).items(): patch.setenv(k, v)
    patch.chdir(ROOT)
    settings.cache_clear()
    setup = importlib.import_module(f"rlgen.{algo}.setup")
    return lambda **params: setup.start(check_params(setup.Params, params))


def here_of(algo: str):
    "A fixture: `working_in` a test's own folder."
    @pytest.fixture
    def here(tmp_path, monkeypatch):
        yield working_in(tmp_path, monkeypatch, algo)
        monkeypatch.undo()
        settings.cache_clear()
    return here
