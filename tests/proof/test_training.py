"""What a row of verify measures beside its times."""

from types import SimpleNamespace

import pytest

from tools.proof import training


def test_peak_memory_is_what_the_framework_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    gpu = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 5})
    monkeypatch.setattr(jax, "devices", lambda kind: [gpu])

    assert training.peak_memory("jax") == 5
