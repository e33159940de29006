"""Every run leaves its page, however it ends, and no page can spoil a run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import events, last_state

from fcmae.config import PretrainConfig
from fcmae.errors import InputError
from fcmae.training.pretrain import pretrain


def reported(config: PretrainConfig) -> PretrainConfig:
    return replace(config, run=replace(config.run, report=True))


def test_a_run_leaves_its_page_and_what_it_was_measured_on(pretrain_config):
    run = pretrain(reported(pretrain_config(reconstruct_every=3)))
    text = (run / "report.html").read_text()
    assert "All 6 steps done." in text and text.count("data:image/png") == 8 * 4
    (start,) = events(run, "start")
    assert start["torch"] == torch.__version__ and start["cores"] >= 1 and start["time"].endswith("+00:00")
    assert start["processor"] in text and torch.__version__ in text


def test_a_run_that_fails_leaves_its_page_too(pretrain_config, monkeypatch):
    config = reported(pretrain_config())
    monkeypatch.setattr(
        "fcmae.methods.masked_autoencoder.reconstruction_loss", lambda pred, *_, **__: pred.sum() * torch.nan
    )
    with pytest.raises(InputError, match="expected a finite loss"):
        pretrain(config)
    text = (Path(config.run.dir) / "report.html").read_text()
    assert "Ended at step 1 of 6: expected a finite loss, got nan" in text


def test_a_page_that_cannot_be_written_spoils_no_run(pretrain_config, capsys):
    config = reported(pretrain_config())
    (Path(config.run.dir) / "report.html").mkdir(parents=True)
    run = pretrain(config)
    assert last_state(run)["step"] == 6
    assert "no report.html: " in capsys.readouterr().err
