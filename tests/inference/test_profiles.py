"""The policy that follows from how a model was trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from asrserver.config import Settings
from asrserver.errors import ModelError
from asrserver.inference.profiles import DEMO, PROFILE_FILE, TRAINED_ON_30_S, profile_of
from asrserver.inference.whisper import Whisper
from asrserver.inference.windows import FULL_WINDOW, WINDOWS, window_for
from asrserver.supervisor.devices import worker_count


def test_only_the_demo_model_is_trained_on_short_windows() -> None:
    assert profile_of("demo") is DEMO
    assert all(profile_of(name) is TRAINED_ON_30_S for name in ("base", "tiny.en", "large-v3", "me/mine", "/srv/model"))


def test_a_model_has_its_profile(model: Whisper) -> None:
    assert model.profile is DEMO


@pytest.mark.parametrize("seconds", [0.5, 1.0, 3.0, 7.9, 25.0])
def test_windows_keep_the_margin(seconds: float) -> None:
    for profile in (DEMO, TRAINED_ON_30_S):
        frames = window_for(seconds, "fit", profile.margin)
        assert frames in WINDOWS
        assert frames >= min(FULL_WINDOW, 100 * (seconds + profile.margin))
    assert window_for(1.0, "fit", TRAINED_ON_30_S.margin) == 500
    assert window_for(1.0, "fit", DEMO.margin) == 200


@pytest.mark.parametrize(("name", "workers"), [("demo", 3), ("base", 4)])
def test_a_gateway_needs_a_core_only_beside_the_demo_model(
    name: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asrserver.supervisor.devices.available_cpus", lambda: 4.5)
    assert worker_count(Settings(model=name, device="cpu")) == workers
    assert worker_count(Settings(model=name, device="cpu", workers=2)) == 2


def test_a_file_beside_the_weights_changes_the_profile(tmp_path: Path) -> None:
    assert profile_of("me/mine", tmp_path) is TRAINED_ON_30_S
    (tmp_path / PROFILE_FILE).write_text('{"margin": 1.5, "timed_drafts": false}')
    assert profile_of("me/mine", tmp_path) == dataclasses.replace(TRAINED_ON_30_S, margin=1.5, timed_drafts=False)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [('{"margn": 1}', "'margn'"), ('{"margin": "long"}', "margin"), ("[]", "object"), ("{", "truncated")],
)
def test_a_wrong_profile_is_refused_by_name(tmp_path: Path, text: str, wrong: str) -> None:
    (tmp_path / PROFILE_FILE).write_text(text)
    with pytest.raises(ModelError, match=wrong) as caught:
        profile_of("me/mine", tmp_path)
    assert PROFILE_FILE in str(caught.value)
