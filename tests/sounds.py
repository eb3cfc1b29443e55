"""Made sounds for evaluation: symbols are chords, voices are timbres. Labels are known exactly."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16_000
PITCHES = (180.0, 240.0, 320.0, 430.0, 570.0, 760.0)


def sound(symbol: int, seconds: float, voice: int, draw: np.random.Generator) -> np.ndarray:
    """A chord at the pitch of a voice, a little out of tune, in a little noise."""
    times = np.arange(round(seconds * RATE)) / RATE
    pitch = PITCHES[symbol] * 2.0 ** (voice / 15) * (1.0 + 0.003 * draw.standard_normal())
    wave = np.zeros_like(times)
    for harmonic in range(1, 6):
        wave += 0.6**harmonic * np.sin(2 * np.pi * harmonic * pitch * times + draw.uniform(0, 6.28))
    wave = 0.1 * wave / np.abs(wave).max() + 0.002 * draw.standard_normal(len(times))
    return wave.astype(np.float32)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A CSV, columns in the order of the first row."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def part_of(index: int) -> str:
    """Of ten, six train, two validate, two test."""
    return ("train", "train", "valid", "train", "test", "train", "train", "valid", "train", "test")[
        index % 10
    ]


def labelled(folder: Path, clips: int = 160, classes: int = 6, seconds: float = 0.3) -> Path:
    """One symbol per clip; a speaker stays in one part."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    rows = []
    for index in range(clips):
        symbol, speaker = int(draw.integers(classes)), index % 20
        name = f"{index:03}.wav"
        soundfile.write(folder / name, sound(symbol, seconds, 0, draw), RATE)
        rows.append(
            {
                "path": name,
                "label": f"word{symbol}",
                "action": f"do{symbol % 3}",
                "object": f"thing{symbol // 3}",
                "location": "none" if symbol else "here",
                "speaker": f"s{speaker:02}",
                "split": part_of(speaker),
                "gender": "f" if speaker % 2 else "m",
            }
        )
    return write_rows(folder / "clips.csv", rows)


def spoken(folder: Path, clips: int = 120, symbols: int = 3, slots: bool = False) -> Path:
    """Sequences of symbols with their transcripts."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(1)
    rows = []
    for index in range(clips):
        sequence = draw.integers(symbols, size=int(draw.integers(2, 5))).tolist()
        pause = np.zeros(round(0.06 * RATE), dtype=np.float32)
        pieces = [pause]
        for symbol in sequence:
            pieces += [sound(2 * symbol, 0.18, 0, draw), pause]
        name = f"{index:03}.wav"
        soundfile.write(folder / name, np.concatenate(pieces), RATE)
        letters = [chr(ord("A") + symbol) for symbol in sequence]
        text = " ".join(letters)
        if slots:
            marks = {"A": "<low>A</low>", "C": "<high>C</high>"}
            text = " ".join(marks.get(letter, letter) for letter in letters)
        row = {"path": name, "phones": " ".join(letters), "text": text, "split": part_of(index)}
        rows.append(row)
    return write_rows(folder / "clips.csv", rows)


def voices(folder: Path, speakers: int = 20, each: int = 10) -> Path:
    """Voices that say the same."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(2)
    rows = []
    for speaker in range(speakers):
        for clip in range(each):
            name = f"{speaker:02}-{clip}.wav"
            wave = sound(0, 0.5, speaker, draw)
            soundfile.write(folder / name, wave, RATE)
            rows.append(
                {
                    "path": name,
                    "utt": f"u{speaker}-{clip}",
                    "speaker": f"v{speaker}",
                    "split": part_of(speaker),
                    "inside": part_of(clip),
                }
            )
    return write_rows(folder / "clips.csv", rows)


def dialogues(folder: Path, clips: int = 40) -> Path:
    """Two voices in turn and together, with RTTM files."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(3)
    rows = []
    for index in range(clips):
        length = 2.4
        wave = 0.002 * draw.standard_normal(round(length * RATE)).astype(np.float32)
        lines = []
        starts = dict(enumerate(draw.uniform(0.0, 1.5, 2).tolist()))
        for speaker, start in starts.items():
            seconds = float(draw.uniform(0.6, 0.9))
            piece = sound((0, 5)[speaker], seconds, 0, draw)
            at = round(start * RATE)
            wave[at : at + len(piece)] += piece
            lines.append(f"SPEAKER d{index} 1 {start:.3f} {seconds:.3f} <NA> <NA> p{speaker} <NA>")
        soundfile.write(folder / f"{index:02}.wav", wave, RATE)
        (folder / f"{index:02}.rttm").write_text("\n".join(lines) + "\n", encoding="utf-8")
        rows.append(
            {"path": f"{index:02}.wav", "rttm": f"{index:02}.rttm", "split": part_of(index)}
        )
    return write_rows(folder / "clips.csv", rows)


def terms(folder: Path, documents: int = 12, queries: int = 5) -> Path:
    """Documents of several symbols, and queries of two in a row."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(4)
    rows = []
    for part in ("valid", "test"):
        pairs = [(0, 1), (2, 3), (4, 5), (1, 4), (3, 0)][:queries]
        for number, (first, second) in enumerate(pairs):
            name = f"{part}-q{number}.wav"
            wave = np.concatenate([sound(first, 0.2, 0, draw), sound(second, 0.2, 0, draw)])
            soundfile.write(folder / name, wave, RATE)
            row = {"path": name, "role": "query", "label": f"t{number}", "split": part}
            rows.append(row)
        for number in range(documents):
            held = [number % len(pairs)]
            pieces = [sound(int(draw.integers(6)), 0.2, 0, draw)]
            for term in held:
                pieces += [sound(symbol, 0.2, 0, draw) for symbol in pairs[term]]
            name = f"{part}-d{number}.wav"
            soundfile.write(folder / name, np.concatenate(pieces), RATE)
            label = " ".join(f"t{term}" for term in held)
            rows.append({"path": name, "role": "document", "label": label, "split": part})
    return write_rows(folder / "clips.csv", rows)
