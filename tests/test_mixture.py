"""Several sources heard together: by share, repeatably, and each to be told apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from sslim.audio import Skipped, read_source
from sslim.audio.batch import Batch
from sslim.audio.batching import PATIENCE, UpdateStream
from sslim.audio.files import Files
from sslim.audio.held_out import HeldOutClips
from sslim.audio.mixture import Mixture
from sslim.audio.shards import find_shards
from sslim.audio.source import Source, StreamSettings
from sslim.errors import AudioError, ConfigError, OutputError
from sslim.story import compress
from tests.models import tiny_teacher
from tests.test_shards import no_loss, noise, webdataset

SETTINGS = StreamSettings(seconds_per_update=8.0, seconds_per_batch=2.0, max_seconds=1.0, seed=3)
Heard = list[tuple[int, list[Batch]]]


def files(folder: Path, count: int = 20, seconds: float = 0.6) -> Files:
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:02}.wav"
        soundfile.write(path, noise(seconds + 0.02 * number, number), 16_000)
    return Files(read_source(folder))


def shards(folder: Path) -> Source:
    found = find_shards(webdataset(folder))
    assert found is not None
    return found


def heard(
    source: Source,
    settings: StreamSettings = SETTINGS,
    first: int = 0,
    last: int = 12,
    workers: int = 0,
) -> Heard:
    datasets = source.datasets(settings, first, last)
    with UpdateStream(datasets, workers=workers, on_lost=no_loss) as stream:
        return list(stream)


def rows(updates: Heard) -> Iterator[tuple[int, str, bytes]]:
    for update, batches in updates:
        for batch in batches:
            for name, waveform in zip(batch.identities, batch.waveforms, strict=True):
                yield update, name, waveform.numpy().tobytes()


def seconds_of(updates: Heard, folder: Path) -> float:
    """Of clips below a folder."""
    return sum(
        len(data) / 4 / 16_000 for _, name, data in rows(updates) if name.startswith(str(folder))
    )


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
@pytest.mark.parametrize("second", ["files", "shards"])
def test_each_source_gives_its_share_of_every_update(
    second: str, share: float, tmp_path: Path
) -> None:
    """Whatever the sources' own lengths: the second has 13 or 158 s, the first 16 s."""
    one = files(tmp_path / "one")
    two = shards(tmp_path / "two") if second == "shards" else files(tmp_path / "two", 100)
    updates = heard(Mixture(((one, 1 - share), (two, share))))
    total = 0.0
    for update in updates:
        given = seconds_of([update], tmp_path / "two")
        assert given == pytest.approx(share * 8.0, abs=0.3 * 8.0)
        total += given
    everything = total + seconds_of(updates, tmp_path / "one")
    assert total / everything == pytest.approx(share, abs=0.04)
    assert everything == pytest.approx(12 * 8.0, rel=0.15)


def test_a_share_below_a_clip_is_not_exceeded(tmp_path: Path) -> None:
    """An update hears a clip of every source; it is cropped where the share is shorter."""
    mixed = Mixture(((files(tmp_path / "one"), 0.95), (files(tmp_path / "two"), 0.05)))
    for update in heard(mixed):
        assert seconds_of([update], tmp_path / "two") == pytest.approx(0.4, abs=0.05)


def test_shares_are_of_their_sum(tmp_path: Path) -> None:
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert Mixture(((one, 3.0), (two, 1.0))) == Mixture(((one, 0.75), (two, 0.25)))
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(AudioError, match="shares above 0"):
            Mixture(((one, 1.0), (two, wrong)))
    with pytest.raises(AudioError, match="shares above 0"):
        Mixture(())


@pytest.mark.parametrize("workers", [0, 3])
def test_a_mixture_is_a_function_of_its_seed(workers: int, tmp_path: Path) -> None:
    mixed = Mixture(((files(tmp_path / "one"), 0.5), (shards(tmp_path / "two"), 0.5)))
    whole = list(rows(heard(mixed)))
    assert list(rows(heard(mixed, workers=workers))) == whole
    resumed = list(rows(heard(mixed, first=5, workers=workers)))
    assert resumed == [row for row in whole if row[0] >= 5]
    assert list(rows(heard(mixed, replace(SETTINGS, seed=4)))) != whole


def test_two_sources_of_the_same_files_are_heard_in_orders_of_their_own(tmp_path: Path) -> None:
    one = files(tmp_path / "one")
    for _, batches in heard(Mixture(((one, 0.5), (one, 0.5)))):
        half = len(batches) // 2
        assert [batch.identities for batch in batches[:half]] != [
            batch.identities for batch in batches[half:]
        ]


def test_processes_hear_together_what_one_would(tmp_path: Path) -> None:
    mixed = Mixture(((files(tmp_path / "one"), 0.5), (files(tmp_path / "two", 9), 0.5)))
    alone = sorted(rows(heard(mixed, replace(SETTINGS, seconds_per_batch=4.0))))
    shared = [
        row
        for rank in range(2)
        for row in rows(heard(mixed, replace(SETTINGS, rank=rank, processes=2)))
    ]
    assert sorted(shared) == alone


def test_fixed_crops_come_round_where_all_sources_can(tmp_path: Path) -> None:
    one, two = files(tmp_path / "one"), files(tmp_path / "two", 9)
    mixed = Mixture(((one, 0.5), (two, 0.5)))
    assert mixed.repeats_crops
    assert not mixed.divided_by_process
    fixed = {row[1:] for row in rows(heard(mixed, replace(SETTINGS, fixed_crops=True)))}
    free = {row[1:] for row in rows(heard(mixed))}
    assert len(fixed) == 29, "each clip is always cropped alike"
    assert len(free) > 60
    streamed = Mixture(((one, 0.5), (shards(tmp_path / "three"), 0.5)))
    assert not streamed.repeats_crops
    assert streamed.divided_by_process


def test_what_a_mixture_says_of_itself(tmp_path: Path) -> None:
    one, two = files(tmp_path / "one"), files(tmp_path / "two", 9)
    mixed = Mixture(((one, 0.75), (two, 0.25)))
    assert mixed.described() == f"75% from {one.described()} + 25% from {two.described()}"
    summary = mixed.summary()
    assert summary["seconds"] == pytest.approx(one.manifest.seconds + two.manifest.seconds)
    assert [part["share"] for part in summary["parts"]] == [0.75, 0.25]
    assert summary["parts"][1]["fingerprint"] == two.summary()["fingerprint"]
    assert sorted(mixed.paths()) == sorted([*one.paths(), *two.paths()])
    assert mixed.longest(9.0) == one.longest(9.0) == pytest.approx(0.98)
    others = [
        Mixture(((one, 0.7), (two, 0.3))),
        Mixture(((two, 0.75), (one, 0.25))),
        Mixture(((one, 1.0),)),
        one,
    ]
    prints = {source.summary()["fingerprint"] for source in [mixed, *others]}
    assert len(prints) == 5
    lost = Files(replace(two.manifest, skipped=(Skipped("a.wav", "is empty"),)))
    assert Mixture(((one, 1.0), (lost, 1.0))).skipped == (Skipped("a.wav", "is empty"),)


def test_every_source_holds_out_its_own(tmp_path: Path) -> None:
    one, two = files(tmp_path / "one"), shards(tmp_path / "two")
    few = files(tmp_path / "few", 3)
    parts = Mixture(((one, 0.5), (two, 0.25), (few, 0.25))).hold_out(0.05, 0)
    assert parts.chosen == "by file (5 of 20); by clip (6 of 24); nothing: too little audio"
    training, held_out = parts.training, parts.held_out
    assert isinstance(training, Mixture)
    assert isinstance(held_out, Mixture)
    assert [share for _, share in held_out.parts] == pytest.approx([2 / 3, 1 / 3])
    assert training.parts[0][0] == one.hold_out(0.05, 0).training
    assert training.parts[2] == (few, 0.25)
    assert [source for source, _ in held_out.parts] == [
        one.hold_out(0.05, 0).held_out,
        two.hold_out(0.05, 0).held_out,
    ]
    listed = parts.listed().parts
    assert listed is not None
    assert len(listed[0].utterances or ()) == 5
    assert listed[1].below
    assert listed[2] == HeldOutClips("nothing: too little audio", ())
    measured = [len(waveform) for waveform in held_out.waveforms(6, 9.0, no_loss)]
    assert len(measured) == 5, "2 of the 5 clips that are spread over the files, 2 of the shards"
    nothing = Mixture(((few, 1.0), (few, 1.0))).hold_out(0.05, 0)
    assert not nothing
    assert nothing.chosen == "nothing: too little audio; nothing: too little audio"


def test_a_source_that_is_gone_stops_the_run_after_a_while(tmp_path: Path) -> None:
    one, two = files(tmp_path / "one"), files(tmp_path / "two", 9)
    mixed = Mixture(((one, 0.5), (two, 0.5)))
    for path in two.paths():
        Path(path).unlink()
    lost: list[Skipped] = []
    updates = 0
    with (
        UpdateStream(mixed.datasets(SETTINGS, 0, 30), on_lost=lost.append) as stream,
        pytest.raises(AudioError, match=rf"files of update {PATIENCE} can be read.*two"),
    ):
        for _, batches in stream:
            assert batches
            updates += 1
    assert updates == PATIENCE - 1
    assert {Path(item.path).parent.name for item in lost} == {"two"}
    assert np.isclose(stream.seconds_heard[1], 0.0)
    assert stream.seconds_heard[0] > 4.0 * 0.7 * updates


# --- a run that hears several sources ------------------------------------------------------------------

RUN = (
    "seconds_per_update=4",
    "seconds_per_batch=1",
    "audio.min_seconds=0.2",
    "audio.max_seconds=1",
    "precision=float32",
    "workers=0",
    "stage1.updates=10",
    "stage2.updates=4",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    tiny_teacher("hubert").save_pretrained(folder / "teacher")
    files(folder / "audio")
    files(folder / "other", 9)
    webdataset(folder / "shards")
    return folder


def run(place: Path, out: Path, shares: dict[str, float], *more: str, **options: Any) -> Any:
    return compress(
        place / "teacher",
        place / "audio",
        out,
        params="60%",
        settings=[*RUN, *more],
        mix={place / name: share for name, share in shares.items()},
        **{"progress": False} | options,
    )


@pytest.mark.parametrize("other", ["other", "shards"])
def test_a_run_hears_each_source_by_its_share(
    other: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(place, tmp_path / "out", {other: 0.25}, progress=True)
    said = " ".join(capsys.readouterr().err.split())
    for stage, updates in (("stage1", 10), ("stage2", 4)):
        figures = re.search(rf"{stage}: heard ([\d.]+) s, ([\d.]+) s of the sources", said)
        assert figures, said
        main, mixed = map(float, figures.groups())
        assert mixed / (main + mixed) == pytest.approx(0.25, abs=0.07)
        assert main + mixed == pytest.approx(4.0 * updates, rel=0.2)
    record = json.loads((tmp_path / "out" / "run" / "run.json").read_text())["audio"]
    assert record["mix"] == {str(place / other): 0.25}
    assert [part["share"] for part in record["parts"]] == [0.75, 0.25]
    held = json.loads((tmp_path / "out" / "run" / "held_out.json").read_text())
    assert len(held["parts"]) == 2
    kinds = {"other": "by file (5 of 20); by file (2 of 9)"}
    assert held["chosen"] == kinds.get(other, "by file (5 of 20); by clip (6 of 24)")
    assert result.held_out["chosen"] == held["chosen"]
    assert result.held_out["utterances"] == 5 + (2 if other == "other" else 6)
    facts = json.loads((tmp_path / "out" / "sslim.json").read_text())["audio"]
    assert facts["described"].startswith("75% from 15 utterances")
    assert str(place) not in json.dumps(facts), "the folder may be published"
    assert "75% from 15 utterances" in (tmp_path / "out" / "README.md").read_text()


def test_a_resumed_run_hears_the_same_mixture(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sslim.steps.recover.run_stage", interrupt)
        run(place, tmp_path / "out", {"other": 0.25})
    for shares in ({"other": 0.5}, {}, {"other": 0.25, "shards": 0.1}):
        with pytest.raises(ConfigError, match=r"was started with --mix .*other=0.25, not with"):
            run(place, tmp_path / "out", shares, resume=True)
    with pytest.raises(ConfigError, match="the audio is not what the run"):
        run(place, tmp_path / "out", {"shards": 0.25}, resume=True)
    run(place, tmp_path / "out", {"other": 0.25}, resume=True)
    run(place, tmp_path / "whole", {"other": 0.25})
    run(place, tmp_path / "alone", {})
    out, whole, alone = (
        load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole", "alone")
    )
    assert all(torch.equal(out[name], whole[name]) for name in whole)
    assert any(
        out[name].shape != alone[name].shape or not torch.equal(out[name], alone[name])
        for name in whole
    )
    with pytest.raises(ConfigError, match="was started with --mix"):  # a finished run as well
        run(place, tmp_path / "out", {}, resume=True)


def test_what_is_wrong_with_a_mixture_is_said_before_anything_is_made(
    place: Path, tmp_path: Path
) -> None:
    for shares, expected in (
        ({"other": 1.0}, "between 0 and 1, got 1"),
        ({"other": -0.1}, "between 0 and 1, got -0.1"),
        ({"other": float("nan")}, "between 0 and 1, got nan"),
        ({"other": 0.5, "shards": 0.5}, "sum to 1, which leaves AUDIO nothing"),
        ({"other": 0.04}, r"the share 0.04 of .*other is 0.16 s of each update"),
        ({"other": 0.96}, r"the share 0.04 of AUDIO is 0.16 s of each update"),
    ):
        with pytest.raises(ConfigError, match=expected):
            run(place, tmp_path / "out", shares)
    with pytest.raises(AudioError, match="gone does not exist"):
        run(place, tmp_path / "out", {"gone": 0.25})
    with pytest.raises(ConfigError, match="target_cache_gib"):
        run(place, tmp_path / "out", {"shards": 0.25}, "target_cache_gib=1")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match=r"audio .* lies in the output folder"):
        run(place, place / "other", {"other": 0.25}, force=True)
