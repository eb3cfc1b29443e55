"""Labelled clips: the CSV a user brings, everything that can be wrong with it, and the corpora's layouts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sslim.cli import run as command_line
from sslim.demo import teacher_path
from sslim.errors import AudioError, ConfigError
from sslim.evaluate import corpora
from sslim.evaluate.clip_table import read_clips
from sslim.evaluate.features import FeatureStore
from sslim.evaluate.scorer import Settings
from sslim.evaluate.splits import check_parts, check_speakers
from sslim.evaluate.suite import run_suite, score_of
from sslim.evaluate.superb import BEST
from sslim.evaluate.tasks import TASKS
from sslim.evaluate.upstream import open_upstream
from sslim.measurements import Result, SuiteScores
from tests import sounds


def write(folder: Path, text: str) -> Path:
    for name in "abcd":
        draw = np.random.default_rng(ord(name))
        soundfile.write(folder / f"{name}.wav", 0.1 * draw.standard_normal(8000), 16_000)
    path = folder / "clips.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_become_clips(tmp_path: Path) -> None:
    rows = ("a.wav,,,x,train", "a.wav,100,4100,y,dev", "b.wav,4000,,x,test", "c.wav,,,x,no")
    text = "\n".join(["path,start,end,label,split", *rows])
    data = read_clips(write(tmp_path, text))
    assert [clip.part for clip in data.clips] == ["train", "valid", "test", ""]
    assert [len(clip.waveform()) for clip in data.clips] == [8000, 4000, 4000, 8000]
    assert read_clips(tmp_path / "clips.csv", where={"label": "y"}).clips[0].row["label"] == "y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.wav,x\n", r"has no column 'path'"),
        ("path,label\na.wav,x,y\n", r"line 2: not as many fields"),
        ("path,label\n", r"has no rows"),
        ("path,label,split\na.wav,x,train\nz.wav,x,test\n", r"1 clip\(s\).*z\.wav.*No such file"),
        ("path,label\na.wav,x\nb.wav,x\n", r"cannot be split in three"),
    ],
)
def test_bad_tables_are_sentences(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises((ConfigError, AudioError), match=message) as caught:
        read_clips(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_no_csv_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_clips(tmp_path / "missing.csv")
    with pytest.raises(ConfigError, match="is no CSV"):
        read_clips(tmp_path)


def test_columns_that_are_missing_name_the_nearest(tmp_path: Path) -> None:
    data = read_clips(write(tmp_path, "path,lable,split\na.wav,x,train\n"))
    with pytest.raises(ConfigError, match=r"no column 'label'.*[Dd]id you mean 'lable'"):
        data.need("label")
    with pytest.raises(ConfigError, match="no column 'splt'"):
        read_clips(tmp_path / "clips.csv", split_column="splt")
    with pytest.raises(ConfigError, match="no column 'lang'"):
        read_clips(tmp_path / "clips.csv", where={"lang": "en"})


def test_leaks_are_refused(tmp_path: Path) -> None:
    text = "path,speaker,split\na.wav,s,train\nb.wav,s,test\nc.wav,t,valid\n"
    with pytest.raises(ConfigError, match=r"speaker 's'.*in train and in test"):
        check_speakers(read_clips(write(tmp_path, text)))
    text = "path,split\na.wav,train\na.wav,test\nc.wav,valid\n"
    with pytest.raises(ConfigError, match=r"a\.wav is in train and in test"):
        check_parts(read_clips(write(tmp_path, text)))
    with pytest.raises(ConfigError, match="no rows of the part 'test'"):
        check_parts(read_clips(write(tmp_path, "path,split\na.wav,train\nb.wav,valid\n")))


def test_a_split_is_made_by_speaker_and_kept(tmp_path: Path) -> None:
    source = sounds.labelled(tmp_path, clips=60, seconds=0.05)
    with source.open(encoding="utf-8") as stream:
        rows = [
            {name: value for name, value in row.items() if name != "split"}
            for row in csv.DictReader(stream)
        ]
    sounds.write_rows(source, rows)
    data = read_clips(source)
    check_speakers(data)
    check_parts(data)
    sizes = {name: len(data.part(name)) for name in ("train", "valid", "test")}
    assert sum(sizes.values()) == 60
    assert sizes["train"] >= 39
    assert min(sizes.values()) >= 6
    assert "split by speaker" in data.notes[0]
    assert (tmp_path / "clips.split.csv").is_file()
    again = read_clips(source, seed=5)
    assert [clip.part for clip in again.clips] == [clip.part for clip in data.clips], "it was kept"


# --- the command ---------------------------------------------------------------------------------------


def test_the_command_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    source = sounds.labelled(tmp_path / "audio", clips=200)
    noise = tmp_path / "noise"
    noise.mkdir()
    soundfile.write(noise / "n.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    words = ["evaluate", str(teacher_path()), "fbank", "--task", "ks", "--data", str(source)]
    words += ["--json", str(tmp_path / "out" / "ks.json"), "--seeds", "2", "--group", "gender"]
    words += ["--noise", str(noise), "--snr", "10,-10", "--conditions", "telephone"]
    words += ["--cache", str(tmp_path / "cache")]
    assert command_line(words) == 0
    shown = capsys.readouterr().out
    for part in ("ks: accuracy, %", "against teacher", "chance", "noise noise, -10 dB", "fbank:"):
        assert part in shown
    facts = json.loads((tmp_path / "out" / "ks.json").read_text())
    assert [row["model"] for row in facts["results"]] == ["teacher", "fbank"]
    first = facts["results"][0]
    for name in ("task", "score", "metric", "interval", "parameters", "chance", "learning_rate"):
        assert name in first
    assert len(first["per_seed"]) == 2
    assert first["conditions"]["noise noise, -10 dB"]["score"] < first["score"]
    assert facts["groups"][0]["column"] == "gender"
    assert facts["versions"]["sslim"]


def test_features_are_computed_once(tmp_path: Path) -> None:
    data = read_clips(sounds.labelled(tmp_path / "audio", clips=20, seconds=0.1))
    upstream = open_upstream("fbank")
    store = FeatureStore(tmp_path / "cache")
    pooled = store.pooled(upstream, data.clips)
    calls = 0

    def refuse(audio: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        raise AssertionError

    from dataclasses import replace

    deaf = replace(upstream, hidden_states=refuse)
    assert np.array_equal(store.pooled(deaf, data.clips), pooled)
    some = [7, 3, 12]  # another task's split, another fold
    assert np.array_equal(store.pooled(deaf, [data.clips[i] for i in some]), pooled[some])
    with pytest.raises(AssertionError):
        store.pooled(deaf, data.clips, condition="another")
    calls = 0
    frames = store.frames(upstream, data.clips)
    kept = store.frames(deaf, data.clips)
    assert np.array_equal(frames[3], kept[3])
    assert np.allclose(frames[3].mean(axis=1), pooled[3], atol=5e-3)
    for path in (tmp_path / "cache").glob("*-*.np?"):  # what a kill or a bad disk leaves
        path.write_bytes(path.read_bytes()[:50])
    assert np.array_equal(store.pooled(upstream, data.clips), pooled)
    assert calls == 0
    tight = FeatureStore(tmp_path / "tight", limit=5000)
    few = tight.frames(upstream, data.clips)
    assert sum(path.stat().st_size for path in (tmp_path / "tight").glob("*")) <= 5000
    assert np.array_equal(few[19], frames[19]), "what does not fit is computed again"


def test_a_batch_gives_what_clips_alone_give(tmp_path: Path) -> None:
    data = read_clips(sounds.labelled(tmp_path, clips=8))
    upstream = open_upstream(teacher_path())
    together = upstream.hidden_states(np.stack([clip.waveform() for clip in data.clips]))
    alone = [upstream.hidden_states(clip.waveform()[None])[0] for clip in data.clips]
    assert np.allclose(together, np.stack(alone), atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "neither --task nor --suite"),
        (["--task", "ks"], "needs --data"),
        (["--task", "kws", "--data", "clips.csv"], "no task 'kws' (did you mean ks?)"),
        (["--task", "ks", "--data", "no.csv"], "no.csv does not exist"),
        (["--suite", "superb"], "needs --root"),
        (["--suite", "glue", "--root", "."], "no suite 'glue'"),
        (["--suite", "superb", "--root", "."], "none of SUPERB's corpora"),
        (["--task", "ks", "--data", "clips.csv", "--snr", "ten"], "--snr needs numbers"),
        (["--task", "ks", "--data", "clips.csv", "--precision", "half"], "--precision knows"),
        (["--task", "fidelity", "--data", "."], "needs a teacher and a student"),
        (["--task", "ks", "--data", "clips.csv"], "one training example"),
        (["--task", "asr", "--data", "clips.csv"], "nothing in its column 'text'"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "path,label,text,split\na.wav,x,,train\nb.wav,y,hi,train\nc.wav,x,hi,valid\nd.wav,x,hi,test\n"
    write(tmp_path, text)
    assert command_line(["evaluate", "fbank", "--cache", "cache", *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


# --- SUPERB's corpora ------------------------------------------------------------------------------


def speech_commands(root: Path) -> None:
    folder = root / "speech_commands_v0.01"
    draw = np.random.default_rng(0)
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for number, word in enumerate(("yes", "no", "cat")):
        (folder / word).mkdir(parents=True)
        for clip in range(10):
            name = f"{word}/{clip}_nohash_0.wav"
            soundfile.write(folder / name, sounds.sound(number, 0.3, 0, draw), 16_000)
            if clip >= 6:
                lists["validation_list.txt" if clip < 8 else "testing_list.txt"].append(name)
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines))
    (folder / "_background_noise_").mkdir()
    noise = 0.05 * draw.standard_normal(30 * 16_000)
    soundfile.write(folder / "_background_noise_" / "hiss.wav", noise, 16_000)


def fluent(root: Path) -> None:
    folder = root / "fluent_speech_commands_dataset"
    (folder / "data").mkdir(parents=True)
    (folder / "wavs").mkdir()
    draw = np.random.default_rng(0)
    for part in ("train", "valid", "test"):
        rows = []
        for clip in range(8):
            name = f"wavs/{part}{clip}.wav"
            soundfile.write(folder / name, sounds.sound(clip % 2, 0.3, 0, draw), 16_000)
            row = {"path": name, "speakerId": f"{part}{clip}", "action": f"a{clip % 2}"}
            rows.append(row | {"object": "lights", "location": f"l{clip % 2}"})
        sounds.write_rows(folder / "data" / f"{part}_data.csv", rows)


def test_the_suite_runs_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speech_commands(tmp_path)
    fluent(tmp_path)
    said: list[str] = []
    settings = Settings(seeds=(0,), say=said.append)

    def suite() -> SuiteScores:
        return run_suite(
            "superb",
            ["fbank"],
            tmp_path,
            settings,
            tmp_path / "s.json",
            "cpu",
            "float32",
            said.append,
        )

    facts = suite()
    assert {row.task for row in facts.results} == {"ks", "ic"}
    assert len(facts.missing) == 8
    assert any("sid: VoxCeleb1 and iden_split.txt is not under" in line for line in said)
    assert facts.superb_score == {"fbank": None}
    assert "SUPERB" in capsys.readouterr().out
    finished = (tmp_path / "sslim-superb" / "ks.json").stat().st_mtime_ns
    suite()
    assert (tmp_path / "sslim-superb" / "ks.json").stat().st_mtime_ns == finished, "not run again"


def test_all_ten_results_give_the_score() -> None:
    by_task = {
        task: Result(
            model="best",
            task=task,
            metric="",
            higher_is_better=True,
            score=values[0] / 100,
            difference=0.0,
            parameters=0,
            macs_per_second=0,
            chance=0.0,
            others={str(i): value / 100 for i, value in enumerate(values[1:])},
        )
        for task, values in BEST.items()
    }
    assert score_of(by_task) == pytest.approx(1000.0)
    assert score_of({"ks": by_task["ks"]}) is None


def test_documents_serve_the_queries_of_both_parts(tmp_path: Path) -> None:
    """QUESST's documents are looked through for development and for evaluation queries."""
    rows = ["path,role,label,split"]
    for part in ("valid", "test"):
        rows += [f"q{part}.wav,query,a,{part}", f"d.wav,document,a,{part}"]
    for level, name in enumerate(("qvalid", "qtest"), start=1):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * level * np.ones(8000), 16_000)
    data = read_clips(write(tmp_path, "\n".join(rows) + "\n"))
    task = TASKS["qbe"]
    check_parts(data, parts=task.parts, shared_role=task.shared_role)
    with pytest.raises(ConfigError, match=r"d\.wav is in valid and in test"):
        check_parts(data, parts=task.parts)


def touch(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_layouts_of_other_corpora(tmp_path: Path) -> None:
    touch(tmp_path / "Voxceleb1" / "dev" / "wav" / "id1" / "vid" / "1.wav")
    touch(tmp_path / "Voxceleb1" / "test" / "wav" / "id2" / "vid" / "1.wav")
    touch(tmp_path / "veri_test_class.txt", "1 id1/vid/1.wav\n3 id2/vid/1.wav\n1 id9/vid/1.wav\n")
    touch(tmp_path / "veri_test.txt", "1 id2/vid/1.wav id2/vid/1.wav\n")
    rows = corpora.voxceleb_identification(tmp_path)
    assert rows is not None
    assert [(row["speaker"], row["split"]) for row in rows] == [("id1", "train"), ("id2", "test")]
    (tmp_path / "veri_test.txt").rename(tmp_path / "voxceleb1_test_v2.txt")  # s3prl's name
    verified = corpora.voxceleb_verification(tmp_path)
    assert verified is not None
    assert verified[1]["split"] == "test"
    assert verified[1]["utt"] == "id2/vid/1.wav"

    touch(tmp_path / "LibriSpeech" / "dev-clean" / "1" / "2" / "1-2.trans.txt", "1-2-0 HI THERE\n")
    touch(tmp_path / "librispeech-lexicon.txt", "HI\tHH AY1\nTHERE\tDH EH1 R\n")
    spoken = corpora.librispeech_phones(tmp_path)
    assert spoken is not None
    assert spoken[0]["phones"] == "HH AY1 DH EH1 R"
    assert spoken[0]["split"] == "valid"

    session = tmp_path / "IEMOCAP_full_release" / "Session1" / "dialog" / "EmoEvaluation"
    touch(session / "s.txt", "[6.29 - 8.23]\tSes01F_impro01_F000\texc\t[2.5, 2.5, 2.5]\n")
    emotions = corpora.iemocap(tmp_path)
    assert emotions is not None
    assert emotions[0]["label"] == "happy"
    assert emotions[0]["session"] == "Session1"
    assert emotions[0]["path"].endswith(
        "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
    )
    assert {corpus.task for corpus in corpora.CORPORA} == set(BEST)


def test_the_published_keywords_are_the_whole_test_part(tmp_path: Path) -> None:
    speech_commands(tmp_path)
    alone = corpora.speech_commands(tmp_path)
    assert alone is not None
    in_test = [row["label"] for row in alone if row["split"] == "test"]
    assert in_test.count("_silence_") >= 1
    assert in_test.count("_unknown_") == 2
    for label in ("yes", "_unknown_", "_silence_"):
        touch(tmp_path / "speech_commands_test_set_v0.01" / label / "1.wav")
    rows = corpora.speech_commands(tmp_path)
    assert rows is not None
    assert [row["label"] for row in rows if row["split"] == "test"] == [
        "_silence_",
        "_unknown_",
        "yes",
    ]
    silent = {(row["path"], row.get("start")) for row in rows if row["label"] == "_silence_"}
    assert len(silent) == 31, "the pieces that had been test are not lost"
    assert {row["split"] for row in rows if row.get("start")} == {"train", "valid"}


def test_phones_come_from_the_lexicons_of_superb(tmp_path: Path) -> None:
    touch(
        tmp_path / "LibriSpeech" / "test-clean" / "1" / "2" / "1-2.trans.txt", "1-2-0 A CAT SAT\n"
    )
    touch(tmp_path / "librispeech-lexicon.txt", "A\tEY1\nCAT\tK AE1 T\n")
    assert corpora.librispeech_phones(tmp_path) == [], "a word is missing"
    touch(tmp_path / "lexicon" / "librispeech-lexicon-200k-g2p.txt", "A\tAH0\nA\tEY1\n")
    touch(tmp_path / "lexicon" / "librispeech-lexicon-allothers-g2p.txt", "SAT\tS AE1 T\n\n")
    rows = corpora.librispeech_phones(tmp_path)
    assert rows is not None
    assert [(row["phones"], row["split"]) for row in rows] == [("AH0 K AE1 T S AE1 T", "test")]


def test_audio_snips_as_superb_prepares_it(tmp_path: Path) -> None:
    (tmp_path / "audio_slu" / "audio_Ivy" / "snips").mkdir(parents=True)  # what it is made from
    snips = tmp_path / "SNIPS"
    lines = []
    for part in ("train", "valid", "test"):
        for voice in ("Ivy", "Amy", "Emma"):
            name = f"{voice}-snips-{part}-0"
            words, tags = "PLAY ABBA GOLD , & MORE", "O artist artist artist O O"
            lines.append(f"{name} BOS {words} EOS\tO {tags} PlayMusic\n")
            touch(snips / part / f"{name}.wav")
    touch(snips / "train" / "Ivy-snips-train-0.mp3")
    touch(snips / "train" / "Ivy-snips-train-9.wav")
    touch(snips / "all.iob.snips.txt", "".join(lines))
    rows = corpora.audio_snips(tmp_path)
    assert rows is not None
    assert [(Path(row["path"]).name, row["speaker"], row["split"]) for row in rows] == [
        ("Ivy-snips-train-0.wav", "Ivy", "train"),
        ("Amy-snips-valid-0.wav", "Amy", "valid"),
        ("Emma-snips-test-0.wav", "Emma", "test"),
    ], "the voices of a part are in no other"
    assert {row["text"] for row in rows} == {"PLAY <artist>ABBA GOLD</artist> AND MORE"}
    marks = corpora.mark_slots(["IN", "PARIS", "TEXAS"], ["O", "city", "state"])
    assert marks == "IN <city>PARIS</city> <state>TEXAS</state>"


def test_libri2mix_as_superb_prepares_it(tmp_path: Path) -> None:
    mixtures = {"train": "train-100", "valid": "dev", "test": "test"}
    for name in mixtures.values():
        touch(tmp_path / "Libri2Mix" / "wav16k" / "max" / name / "mix_both" / "1-1-1_2-2-2.wav")
    assert corpora.libri2mix(tmp_path) is None
    truth = tmp_path / "diarization" / "data"
    for name in ("train", "dev", "test"):
        line = "SPEAKER\t1-1-1_2-2-2\t1\t0.1\t0.5\t<NA>\t<NA>\t1\t<NA>\n"
        touch(truth / name / "rttm", line)
    rows = corpora.libri2mix(tmp_path)
    assert rows is not None
    assert [row["split"] for row in rows] == list(mixtures)
    assert [Path(row["path"]).parts[-3:-1] for row in rows] == [
        (name, "mix_both") for name in mixtures.values()
    ]
    assert [row["rttm"] for row in rows] == [
        str((truth / name / "rttm").resolve()) for name in ("train", "dev", "test")
    ]
    assert {row["utt"] for row in rows} == {"1-1-1_2-2-2"}


def test_quesst_as_it_is_shipped(tmp_path: Path) -> None:
    quesst = tmp_path / "quesst14Database"
    listed = "".join(
        f"quesst14Database/Audio/quesst14_0000{number}.wav\t{language}\n"
        for number, language in ((1, "nnenglish"), (2, "czech"), (3, "nnenglish"))
    )
    touch(quesst / "scoring" / "language_key_utterances.lst", listed)
    for key in ("dev", "eval"):
        query = f"quesst14_{key}_001"
        lines = (f"x/{key}_queries/{query}.wav nnenglish", f"x/{key}_queries/other.wav czech")
        touch(quesst / "scoring" / f"language_key_{key}.lst", "\n".join(lines))
        assert corpora.quesst(tmp_path) is None, "the truth is missing"
        truth = quesst / "scoring" / f"groundtruth_quesst14_{key}" / f"quesst14_{key}.rttm"
        found = (("quesst14_00003", query), ("quesst14_00001", "other"), ("quesst14_00002", query))
        touch(truth, "".join(f"LEXEME {doc} 1 0.00 4.50 {term} lex - -\n" for doc, term in found))
    rows = corpora.quesst(tmp_path)
    assert rows is not None
    expected = [
        (str(quesst / path), role, label.format(key=key), part)
        for key, part in (("dev", "valid"), ("eval", "test"))
        for path, role, label in (
            (f"{key}_queries/quesst14_{key}_001.wav", "query", "quesst14_{key}_001"),
            ("Audio/quesst14_00001.wav", "document", ""),
            ("Audio/quesst14_00003.wav", "document", "quesst14_{key}_001"),
        )
    ]
    assert [(row["path"], row["role"], row["label"], row["split"]) for row in rows] == expected
