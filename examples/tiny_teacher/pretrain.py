"""Pre-trains a small HuBERT by masked prediction of k-means units, in two rounds (Hsu et al. 2021)."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import scipy.fft
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import nn
from torch.nn import functional as F
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from sslim.audio import Manifest, load_audio, read_source
from sslim.audio.batching import UpdateStream
from sslim.audio.files import Files
from sslim.audio.source import StreamSettings
from sslim.device import choose_device, choose_precision
from sslim.errors import SslimError
from sslim.evaluate.fbank import log_mel
from sslim.train.loop import learning_rate_share

MASKED_SHARE, SPAN = 0.65, 10
FRAMES_FOR_CLUSTERS = 200_000
HOP = 320


def mfcc(waveform: np.ndarray) -> np.ndarray:
    """39 MFCCs (13, first and second differences) every 20 ms: (frames, 39)."""
    cepstra = scipy.fft.dct(log_mel(waveform)[0], norm="ortho")[::2, :13]
    first = np.gradient(cepstra, axis=0) if len(cepstra) > 1 else np.zeros_like(cepstra)
    second = np.gradient(first, axis=0) if len(first) > 1 else np.zeros_like(first)
    return np.concatenate([cepstra, first, second], axis=1).astype(np.float32)


def small_config() -> HubertConfig:
    return HubertConfig(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=768,
        conv_dim=(128,) * 7,
        num_conv_pos_embeddings=64,
        layerdrop=0.0,
        attention_dropout=0.05,
        hidden_dropout=0.05,
        activation_dropout=0.0,
        feat_proj_dropout=0.05,
        mask_time_prob=MASKED_SHARE,
        mask_time_length=SPAN,
    )


class Units:
    """Cluster numbers of a waveform's frames, from MFCCs or from a layer of an earlier model."""

    def __init__(self, clusters: int, model: HubertModel | None, layer: int, seed: int) -> None:
        self.kmeans = MiniBatchKMeans(clusters, batch_size=10_000, n_init=3, random_state=seed)
        self.model, self.layer = model, layer

    def features(self, waveform: np.ndarray) -> np.ndarray:
        if self.model is None:
            return mfcc(waveform)
        device = next(self.model.parameters()).device
        with torch.no_grad():
            inputs = torch.from_numpy(waveform)[None].to(device)
            states = self.model(inputs, output_hidden_states=True).hidden_states
        return states[self.layer][0].float().cpu().numpy()

    def fit(self, manifest: Manifest, generator: np.random.Generator) -> None:
        rows, count = [], 0
        for index in generator.permutation(len(manifest.utterances)):
            rows.append(self.features(load_audio(manifest.utterances[index])))
            count += len(rows[-1])
            if count >= FRAMES_FOR_CLUSTERS:
                break
        frames = np.concatenate(rows)
        self.mean, self.spread = frames.mean(0), frames.std(0) + 1e-5
        self.kmeans.fit((frames - self.mean) / self.spread)

    def of(self, waveforms: torch.Tensor, frames: int) -> torch.Tensor:
        """(batch, samples) -> (batch, frames)."""
        rows = []
        for waveform in waveforms.numpy():
            features = (self.features(waveform) - self.mean) / self.spread
            labels = self.kmeans.predict(features)
            rows.append(np.pad(labels, (0, max(0, frames - len(labels))), mode="edge")[:frames])
        return torch.from_numpy(np.stack(rows)).long()


def spans(batch: int, frames: int, generator: torch.Generator) -> torch.Tensor:
    """Random spans that cover about MASKED_SHARE of each row: (batch, frames) bool."""
    starts = torch.rand(batch, frames, generator=generator) < MASKED_SHARE / SPAN * 1.6
    masked = torch.zeros(batch, frames, dtype=torch.bool)
    for shift in range(SPAN):
        masked[:, shift:] |= starts[:, : frames - shift]
    masked[:, 0] |= ~masked.any(1)
    return masked


def train_round(
    manifest: Manifest, units: Units, clusters: int, updates: int, arguments: argparse.Namespace
) -> HubertModel:
    device = choose_device(arguments.device)
    precision = choose_precision("auto", device)
    torch.manual_seed(arguments.seed)
    model = HubertModel(small_config()).to(device).train()
    head = nn.Linear(model.config.hidden_size, clusters).to(device)
    parameters = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(
        parameters, lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    settings = StreamSettings(
        seconds_per_update=arguments.seconds_per_update,
        seconds_per_batch=arguments.seconds_per_update,
        max_seconds=arguments.crop,
        seed=arguments.seed,
    )
    generator = torch.Generator().manual_seed(arguments.seed)
    began = time.perf_counter()
    with UpdateStream(Files(manifest).datasets(settings, 0, updates)) as stream:
        for update, batches in stream:
            for group in optimiser.param_groups:
                share = learning_rate_share(update, updates, max(1, updates // 20))
                group["lr"] = arguments.learning_rate * share
            optimiser.zero_grad()
            right = total = 0
            for batch in batches:
                frames = int(model._get_feat_extract_output_lengths(batch.waveforms.shape[1]))
                if frames <= SPAN:
                    continue
                labels = units.of(batch.waveforms, frames).to(device)
                masked = spans(len(labels), frames, generator).to(device)
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    states = model(batch.waveforms.to(device), mask_time_indices=masked)
                    logits = head(states.last_hidden_state)[masked]
                loss = F.cross_entropy(logits.float(), labels[masked]) / len(batches)
                loss.backward()
                right += int((logits.argmax(-1) == labels[masked]).sum())
                total += int(masked.sum())
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            if (update + 1) % arguments.log_every == 0 or update + 1 == updates:
                print(
                    f"update {update + 1}/{updates}  masked-frame accuracy {right / max(1, total):.3f}  "
                    f"{time.perf_counter() - began:.0f} s",
                    flush=True,
                )
    return model.eval()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audio", help="a folder, list, tsv, CSV or lhotse manifest")
    parser.add_argument("out", type=Path)
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE")
    parser.add_argument("--updates", type=int, nargs=2, default=(3000, 5000))
    parser.add_argument("--clusters", type=int, nargs=2, default=(100, 200))
    parser.add_argument("--layer", type=int, default=4, help="layer of round 1 that round 2 learns")
    parser.add_argument("--seconds-per-update", type=float, default=42.0)
    parser.add_argument("--crop", type=float, default=3.0)
    parser.add_argument("--min-seconds", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        where = dict(pair.split("=", 1) for pair in arguments.where)
        manifest = read_source(arguments.audio, min_seconds=arguments.min_seconds, where=where)
    except SslimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(manifest.utterances):,} utterances, {manifest.seconds / 3600:.2f} h")
    generator = np.random.default_rng(arguments.seed)
    model = None
    for number, (updates, clusters) in enumerate(
        zip(arguments.updates, arguments.clusters, strict=True), start=1
    ):
        source = "MFCCs" if model is None else f"layer {arguments.layer} of round {number - 1}"
        print(f"round {number}: {clusters} units from {source}")
        units = Units(clusters, model, arguments.layer, arguments.seed)
        units.fit(manifest, generator)
        model = train_round(manifest, units, clusters, updates, arguments)
    assert model is not None
    model.save_pretrained(arguments.out)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(
        arguments.out
    )
    print(f"{arguments.out}: {model.num_parameters():,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
