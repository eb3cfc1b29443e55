"""Runs an exported model with onnxruntime, numpy and soundfile alone: no torch, no sslim.

    python examples/onnx_only.py MODEL.onnx AUDIO [AUDIO ...]

Prints one line per file: frames, width (or classes), and the mean and deviation of what came out. Files of
another rate than the model's are refused: resample them first.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import soundfile


def read(path: str, rate: int, shortest: int) -> np.ndarray:
    """Mono float32 samples, or a sentence about what is wrong."""
    samples, actual_rate = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = samples.mean(axis=1)
    if actual_rate != rate:
        sys.exit(f"error: {path} has {actual_rate} Hz, the model wants {rate}. Resample it first.")
    if len(waveform) < shortest:
        sys.exit(f"error: {path} has {len(waveform)} samples, too short. Give at least {shortest}.")
    if not np.isfinite(waveform).all():
        sys.exit(f"error: {path} holds NaN or infinity. Repair it.")
    return np.ascontiguousarray(waveform, dtype=np.float32)


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} MODEL.onnx AUDIO [AUDIO ...]")
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    rate, shortest = int(metadata["sampling_rate"]), int(metadata["receptive_field"])
    waveforms = [read(path, rate, shortest) for path in sys.argv[2:]]
    # One padded batch: the lengths tell the model what is padding, and it changes nothing.
    lengths = np.array([len(waveform) for waveform in waveforms], np.int64)
    batch = np.zeros((len(waveforms), lengths.max()), np.float32)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    names = [output.name for output in session.get_outputs()]
    outputs = dict(
        zip(names, session.run(names, {"waveform": batch, "lengths": lengths}), strict=True)
    )
    output = outputs.get("logits", outputs.get("last_hidden_state"))
    for path, rows, frames in zip(sys.argv[2:], output, outputs["frame_lengths"], strict=True):
        rows = rows[:frames] if rows.ndim == 2 else rows
        shape = " x ".join(map(str, rows.shape))
        print(f"{path}: {shape}, mean {rows.mean():.4f}, deviation {rows.std():.4f}")


if __name__ == "__main__":
    main()
