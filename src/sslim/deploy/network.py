"""A model of ours as an ONNX graph: waveforms and lengths in, features or logits out.

The graph computes what `modeling_sslim.py` computes with `exact_padding`, layer by layer in the same order,
and adds what a program without torch would have to know: the normalisation of the waveform, and NaN in every
output of an utterance that is too short, longer than its row, or holds values that are not numbers.

Shape legend: as in `modeling_sslim.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from sslim.backbone.loaded import LoadedModel
from sslim.deploy.arithmetic import Arithmetic, Float32, windows
from sslim.deploy.graph import DOUBLE, FLOAT, Graph
from sslim.errors import ExportError

NORMALISE_EPSILON = 1e-7
"""As in transformers' Wav2Vec2FeatureExtractor."""
CHUNKED = 3
"""Convolutions after the first that are computed chunk by chunk, the first one with them: what they write
is wide and read once, so it should not leave the processor's cache."""
CHUNK = 128
"""Frames of the last of them in a chunk. Both were chosen by measurement; docs/deploy.md has the figures."""
FAR = np.float32(-1e30)
"""Added to the attention score of a padded frame: its weight becomes exactly zero."""


def values(parameter: Any) -> np.ndarray:
    """A weight as float32."""
    array: np.ndarray = parameter.detach().float().cpu().numpy()
    return array


class Network:
    """Writes one model into one graph.

    Args:
        loaded: the model.
        arithmetic: how its products are computed.

    Raises:
        ExportError: the model has an activation that has no operator here.
    """

    def __init__(self, loaded: LoadedModel, arithmetic: Arithmetic) -> None:
        self.loaded = loaded
        self.model: Any = loaded.model
        self.config: Any = loaded.model.config
        self.arithmetic = arithmetic
        self.graph = Graph()
        self.time: str = ""  # frames of the longest utterance, a scalar
        self.keep_BT1: str = ""
        self.mask_B11T: str = ""
        self.layers: list[str] = []

    def write(self) -> None:
        """Writes the backbone; `layers` then names its hidden states, `last` its output."""
        with self.graph.within("front_end"):
            x = self._front_end(self._waveform())
        with self.graph.within("projection"):
            x = self._projection(x)
        self.last = self._encoder(x)

    # Inputs

    def _waveform(self) -> str:
        """Padding zeroed, normalised where the model wants it: (B, S). Sets `bad_B`, NaN for bad rows."""
        g = self.graph
        samples = g.op("Gather", g.op("Shape", "waveform"), 1)
        times = g.op("Unsqueeze", g.op("Range", 0, samples, 1), [0])
        valid = g.op("Less", times, g.op("Unsqueeze", "lengths", [1]))
        waveform = g.op("Where", valid, "waveform", 0.0)
        nothing = g.op("ReduceSum", g.op("Mul", waveform, 0.0), [1], keepdims=0)
        fits = g.op(
            "And",
            g.op("GreaterOrEqual", "lengths", self.loaded.receptive_field),
            g.op("LessOrEqual", "lengths", samples),
        )
        self.bad_B = g.op("Add", nothing, g.op("Where", fits, 0.0, np.float32(math.nan)))
        if self.loaded.normalise:
            # Sums over a minute of samples are taken in double precision.
            exact = g.op("Cast", waveform, to=DOUBLE)
            count = g.op("Unsqueeze", g.op("Cast", "lengths", to=DOUBLE), [1])
            mean = g.op("Div", g.op("ReduceSum", exact, [1]), count)
            centred = g.op("Where", valid, g.op("Sub", exact, mean), np.float64(0))
            variance = g.op("Div", g.op("ReduceSum", g.op("Mul", centred, centred), [1]), count)
            deviation = g.op("Sqrt", g.op("Add", variance, np.float64(NORMALISE_EPSILON)))
            waveform = g.op("Cast", g.op("Div", centred, deviation), to=FLOAT)
        return waveform

    # Convolutions

    def _after(self, frames: str, layer: Any) -> str:
        """Frames that a convolution makes, never below zero; a scalar or (B,)."""
        g = self.graph
        made = g.op("Div", g.op("Sub", frames, layer.conv.kernel_size[0]), layer.conv.stride[0])
        return g.op("Max", g.op("Add", made, 1), 0)

    def _front_end(self, waveform: str) -> str:
        g = self.graph
        first, *others = self.model.feature_extractor.conv_layers
        together = others[: max(1, min(CHUNKED, len(others)))]
        frames = self._after(g.op("Gather", g.op("Shape", "waveform"), 1), first)
        frames_B = self._after("lengths", first)
        x = windows(g, waveform, frames, first.conv.kernel_size[0], first.conv.stride[0])
        weights = None
        if first.norm == "group":
            x, weights = self._group_norm_in_weights(x, frames, frames_B, first)
        wanted = frames
        reads, step = [CHUNK], 1  # frames of each layer that one chunk needs, last to first
        for layer in together:
            wanted, frames_B = self._after(wanted, layer), self._after(frames_B, layer)
        for layer in reversed(together):
            kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
            reads.append((reads[-1] - 1) * stride + kernel)
            step *= stride
        chunks = g.op("Div", g.op("Add", wanted, CHUNK - 1), CHUNK)
        last = g.op("Mul", g.op("Sub", chunks, 1), CHUNK * step)
        missing = g.op("Max", g.op("Sub", g.op("Add", last, reads[-1]), frames), 0)
        missing = g.op("Reshape", missing, [1])
        x = g.op("Pad", x, g.op("Concat", [0, 0, 0, 0], missing, [0], axis=0))

        def body(chunk: str) -> str:
            start = g.op("Reshape", g.op("Mul", chunk, CHUNK * step), [1])
            y = g.op("Slice", x, start, g.op("Add", start, reads[-1]), [1])
            if weights is not None:
                y = g.op("MatMul", y, weights)
            else:
                y = g.op("MatMul", y, values(first.conv.weight)[:, 0].T)
                if first.conv.bias is not None:
                    y = g.op("Add", y, values(first.conv.bias))
                y = self._layer_norm(y, first.layer_norm) if first.norm == "layer" else y
            y = self._activation(y, self.config.feat_extract_activation)
            for index, layer in enumerate(together, start=1):
                count = g.constant(reads[len(together) - index])
                y = self._convolution(y, count, index, layer)
            return y

        x = g.over_chunks(chunks, body)  # (chunks, B, CHUNK, C)
        x = g.op("Transpose", x, perm=[1, 0, 2, 3])
        x = g.op("Reshape", x, [0, -1, together[-1].conv.out_channels])
        x = g.op("Slice", x, [0], g.op("Reshape", wanted, [1]), [1])
        frames = wanted
        for index, layer in enumerate(others[len(together) :], start=1 + len(together)):
            frames, frames_B = self._after(frames, layer), self._after(frames_B, layer)
            x = self._convolution(x, frames, index, layer)
        self.time, self.frames_B = frames, frames_B
        times = g.op("Unsqueeze", g.op("Range", 0, frames, 1), [0])
        keep_BT = g.op("Less", times, g.op("Unsqueeze", frames_B, [1]))
        self.keep_BT1 = g.op("Unsqueeze", keep_BT, [2])
        self.mask_B11T = g.op("Unsqueeze", g.op("Where", keep_BT, 0.0, FAR), [1, 2])
        scale = self.model.feature_extractor.output_scale
        return x if scale is None else g.op("Mul", x, values(scale))

    def _convolution(self, x: str, frames: str, index: int, layer: Any) -> str:
        """One layer after the first: product, norm, activation."""
        x = self.arithmetic.convolve(
            self.graph,
            x,
            frames,
            values(layer.conv.weight),
            None if layer.conv.bias is None else values(layer.conv.bias),
            layer.conv.stride[0],
            f"feature_extractor.conv_layers.{index}.conv",
        )
        if layer.norm == "layer":
            x = self._layer_norm(x, layer.layer_norm)
        return self._activation(x, self.config.feat_extract_activation)

    def _group_norm_in_weights(
        self, x: str, frames: str, frames_B: str, layer: Any
    ) -> tuple[str, str]:
        """The first convolution and its group norm as one product: windows (B, T, kernel + 1), the last value
        of each being one, and weights (B, kernel + 1, C).

        The mean and variance of each channel over time follow from those of the kernel-sized windows of the
        waveform: var(w . u) = w' cov(u) w. So the norm becomes a scale of the weights per utterance, over its
        valid frames only, and the widest tensor of the model is written once instead of four times. In
        double precision, because neighbouring samples are nearly equal and most of the variance cancels.
        """
        g = self.graph
        times = g.op("Unsqueeze", g.op("Range", 0, frames, 1), [0])
        keep = g.op("Less", times, g.op("Unsqueeze", frames_B, [1]))
        keep = g.op("Cast", g.op("Unsqueeze", keep, [2]), to=DOUBLE)
        count = g.op("Cast", g.op("Max", frames_B, 1), to=DOUBLE)
        count = g.op("Unsqueeze", count, [1, 2])
        exact = g.op("Cast", x, to=DOUBLE)
        mean = g.op(
            "Div", g.op("ReduceSum", g.op("Mul", exact, keep), [1]), count
        )  # (B, 1, kernel)
        centred = g.op("Mul", g.op("Sub", exact, mean), keep)
        turned = g.op("Transpose", centred, perm=[0, 2, 1])
        covariance = g.op("Div", g.op("MatMul", turned, centred), count)  # (B, kernel, kernel)
        weight = values(layer.conv.weight)[:, 0].astype(np.float64)  # (C, kernel)
        variance = g.op("Mul", g.op("MatMul", weight, covariance), weight)
        variance = g.op("Max", g.op("ReduceSum", variance, [2]), np.float64(0))  # (B, C, 1)
        norm = layer.layer_norm
        deviation = g.op("Sqrt", g.op("Add", variance, np.float64(norm.eps)))
        gain = values(norm.weight).astype(np.float64)[:, None]
        scaled = g.op("Mul", weight, g.op("Div", gain, deviation))  # (B, C, kernel)
        scaled = g.op("Transpose", scaled, perm=[0, 2, 1])  # (B, kernel, C)
        offset = g.op("Sub", values(norm.bias).astype(np.float64), g.op("MatMul", mean, scaled))
        # The offset as one more row, read by a window value of one.
        both = g.op("Cast", g.op("Concat", scaled, offset, axis=1), to=FLOAT)
        ones = g.op("Add", g.op("Mul", g.op("Slice", x, [0], [1], [2]), 0.0), 1.0)
        return g.op("Concat", x, ones, axis=2), both

    # Around the encoder

    def _projection(self, x: str) -> str:
        projection = self.model.feature_projection
        if projection.layer_norm is not None:
            x = self._layer_norm(x, projection.layer_norm)
        # Float32 in every arithmetic: few channels carry most of what the norm gives, and eight bits for all
        # of them cost more here than in all layers of the encoder together.
        linear = projection.projection
        return Float32().linear(self.graph, x, values(linear.weight), values(linear.bias), "")

    def _encoder(self, x: str) -> str:
        g, encoder = self.graph, self.model.encoder
        with g.within("positional"):
            x = self._valid(x)
            x = g.op("Add", x, self._position(x))
        if not encoder.norm_first:
            x = self._layer_norm(x, encoder.layer_norm)
        self.layers = [x]
        bias_HTT = self._position_bias()
        for index, layer in enumerate(encoder.layers):
            x = self._layer(x, layer, f"encoder.layers.{index}", bias_HTT)
            self.layers.append(x)
        return self._layer_norm(x, encoder.layer_norm) if encoder.norm_first else x

    def _position(self, x: str) -> str:
        g, position = self.graph, self.model.encoder.pos_conv_embed
        activation = self.config.feat_extract_activation
        if hasattr(position, "layers"):  # data2vec's stack
            for index, layer in enumerate(position.layers):
                x = self._valid(x) if index else x
                x = self._position_convolution(x, layer.conv, f"layers.{index}.conv")
                x = self._activation(self._layer_norm(x, layer.layer_norm), activation)
            return x
        norm = position.batch_norm
        if norm is not None:
            deviation = torch.sqrt(norm.running_var + norm.eps)
            scale = values(norm.weight / deviation)
            x = g.op("Mul", g.op("Sub", x, values(norm.running_mean)), scale)
            x = self._valid(g.op("Add", x, values(norm.bias)))
        return self._activation(self._position_convolution(x, position.conv, "conv"), activation)

    def _position_convolution(self, x: str, conv: Any, name: str) -> str:
        """One positional convolution, as many frames out as in: a product for each run of kept taps."""
        g, weight, bias = self.graph, values(conv.weight), values(conv.bias)
        key, total = f"encoder.pos_conv_embed.{name}", ""
        for offset, start, stop in conv.runs:
            before = min(max(0, -offset), stop - start - 1)
            read, taps = (
                self._moved(x, offset + before),
                np.ascontiguousarray(weight[..., start:stop]),
            )
            part = self.arithmetic.positional(
                g, read, self.time, taps, bias, conv.groups, before, key
            )
            total, bias = g.op("Add", total, part) if total else part, np.zeros_like(bias)
        return total

    def _moved(self, x: str, frames: int) -> str:
        """(B, T, D) with frame t + `frames` in the place of frame t, zeros where there is none."""
        g = self.graph
        if frames > 0:
            return g.op("Slice", g.op("Pad", x, [0, 0, 0, 0, frames, 0]), [frames], [2**31], [1])
        if frames < 0:
            x = g.op("Pad", x, [0, -frames, 0, 0, 0, 0])
            return g.op("Slice", x, [0], g.op("Reshape", self.time, [1]), [1])
        return x

    def _position_bias(self) -> str | None:
        """WavLM's relative-position bias, (H, T, T): one value per head and distance."""
        g, encoder = self.graph, self.model.encoder
        if encoder.rel_attn_embed is None:
            return None
        # Beyond the largest distance the bias is constant, so a table of that length serves any audio.
        reach = int(self.config.max_bucket_distance)
        table_HTT = encoder.position_bias(2 * reach + 1)
        centre = reach
        by_distance = values(table_HTT[:, centre, :])  # distances -reach to reach
        times = g.op("Range", 0, self.time, 1)
        distance = g.op("Sub", g.op("Unsqueeze", times, [0]), g.op("Unsqueeze", times, [1]))
        index = g.op("Add", g.op("Clip", distance, -reach, reach), reach)
        return g.op("Gather", by_distance, index, axis=1)

    # One layer

    def _layer(self, x: str, layer: Any, key: str, bias_HTT: str | None) -> str:
        g = self.graph
        if layer.attention is not None:
            read = self._layer_norm(x, layer.layer_norm) if layer.norm_first else x
            with g.within("attention"):
                out = self._attention(read, layer.attention, f"{key}.attention", bias_HTT)
            x = g.op("Add", x, out)
        if not layer.norm_first:
            x = self._layer_norm(x, layer.layer_norm)
        if layer.feed_forward is not None:
            read = self._layer_norm(x, layer.final_layer_norm) if layer.norm_first else x
            with g.within("ffn"):
                out = self._feed_forward(read, layer.feed_forward, f"{key}.feed_forward")
            x = g.op("Add", x, out)
        return x if layer.norm_first else self._layer_norm(x, layer.final_layer_norm)

    def _attention(self, x: str, attention: Any, key: str, bias_HTT: str | None) -> str:
        if not attention.heads:
            return self.graph.constant(values(attention.out_proj.bias))
        g, heads, size = self.graph, len(attention.heads), attention.head_size
        scaling = np.float32(size**-0.5)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight, bias = (
            np.concatenate(
                [
                    values(getattr(projection, part)) * (1 if index else scaling)
                    for index, projection in enumerate(projections)
                ]
            )
            for part in ("weight", "bias")
        )
        qkv = self.arithmetic.linear(g, x, weight, bias, f"{key}.q_proj")
        qkv = g.op("Reshape", qkv, [0, 0, 3, heads, size])
        q, k, v = (
            g.op(
                "Transpose",
                g.op("Gather", qkv, part, axis=2),
                perm=[0, 2, 3, 1] if part == 1 else [0, 2, 1, 3],
            )
            for part in range(3)
        )
        scores = g.op("MatMul", q, k)
        if bias_HTT is not None and attention.gated_position:
            rows = attention.bias_rows
            if rows is not None:
                bias_HTT = g.op("Gather", bias_HTT, np.array(rows, np.int64), axis=0)
            gated = g.op("Mul", self._position_gate(x, attention), bias_HTT)
            scores = g.op("Add", scores, gated)
        weights = g.op("Softmax", g.op("Add", scores, self.mask_B11T), axis=-1)
        out = g.op("Transpose", g.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        out = g.op("Reshape", out, [0, 0, heads * size])
        return self._linear(out, attention.out_proj, f"{key}.out_proj")

    def _position_gate(self, x: str, attention: Any) -> str:
        """WavLM's gate, (B, H, T, 1). The sums of four outputs are taken in the weights."""
        g, size = self.graph, attention.head_size
        x = g.op("Reshape", x, [0, 0, attention.total_heads, size])
        if len(attention.heads) < attention.total_heads:
            x = g.op("Gather", x, np.array(attention.heads, np.int64), axis=2)
        x = g.op("Transpose", x, perm=[0, 2, 1, 3])
        linear = attention.gru_rel_pos_linear
        weight = values(linear.weight).reshape(2, 4, size).sum(1)
        bias = values(linear.bias).reshape(2, 4).sum(1)
        gates = g.op("Sigmoid", g.op("Add", g.op("MatMul", x, weight.T), bias))
        update, reset = g.ops("Split", 2, gates, axis=3, num_outputs=2)
        inner = g.op("Sub", g.op("Mul", reset, values(attention.gru_rel_pos_const)), 1.0)
        return g.op("Add", g.op("Mul", update, inner), 2.0)

    def _feed_forward(self, x: str, block: Any, key: str) -> str:
        if not block.units:
            return self.graph.constant(values(block.output_dense.bias))
        x = self._linear(x, block.intermediate_dense, f"{key}.intermediate_dense")
        x = self._activation(x, self.config.hidden_act)
        return self._linear(x, block.output_dense, f"{key}.output_dense")

    # Pieces

    def _linear(self, x: str, linear: Any, key: str) -> str:
        bias = None if linear.bias is None else values(linear.bias)
        return self.arithmetic.linear(self.graph, x, values(linear.weight), bias, key)

    def _layer_norm(self, x: str, norm: Any) -> str:
        width = norm.normalized_shape[0]
        weight = np.ones(width, np.float32) if norm.weight is None else values(norm.weight)
        bias = np.zeros(width, np.float32) if norm.bias is None else values(norm.bias)
        return self.graph.op("LayerNormalization", x, weight, bias, epsilon=norm.eps)

    def _valid(self, x: str) -> str:
        """(B, T, D) with zeros where padding is."""
        return self.graph.op("Where", self.keep_BT1, x, 0.0)

    def _activation(self, x: str, name: str) -> str:
        g = self.graph
        if name == "gelu":
            return g.op("Gelu", x)
        if name == "relu":
            return g.op("Relu", x)
        if name in ("gelu_new", "gelu_pytorch_tanh"):
            return g.op("Gelu", x, approximate="tanh")
        if name in ("silu", "swish"):
            return g.op("Mul", x, g.op("Sigmoid", x))
        raise ExportError(
            f"{self.loaded.source} uses the activation {name!r}, which has no export",
            "exports know gelu, gelu_new, relu and silu",
        )

    # Outputs

    def features(self, value: str) -> str:
        """An output (B, T, D): zeros where padding is, NaN for bad rows."""
        bad = self.graph.op("Unsqueeze", self.bad_B, [1, 2])
        return self.graph.op("Add", self._valid(value), bad)

    def hidden_states(self) -> str:
        """All layers, (L + 1, B, T, D)."""
        g = self.graph
        return g.op(
            "Concat", *[g.op("Unsqueeze", self.features(x), [0]) for x in self.layers], axis=0
        )

    def logits(self) -> str:
        """What the head says: (B, T, classes) for heads over frames, (B, classes) for one label."""
        g = self.graph
        whole: Any = self.loaded.whole
        head = Float32()  # heads are small, and what they decide is near their bias

        def linear(x: str, layer: Any) -> str:
            return head.linear(g, x, values(layer.weight), values(layer.bias), "")

        read = self.last
        if getattr(whole, "layer_weights", None) is not None:
            shares = values(whole.layer_weights.softmax(-1))
            parts = [g.op("Mul", x, w) for x, w in zip(self.layers, shares, strict=True)]
            read = parts[0]
            for part in parts[1:]:
                read = g.op("Add", read, part)
        bad = self.bad_B
        kind = self.loaded.head
        if kind == "ctc":
            return self.features(linear(read, whole.lm_head))
        if kind == "frame-classification":
            return self.features(linear(read, whole.classifier))
        read = linear(read, whole.projector)
        if kind == "sequence-classification":
            pooled, _ = self._statistics(read, self.frames_B, self.keep_BT1)
            return g.op("Add", linear(pooled, whole.classifier), g.op("Unsqueeze", bad, [1]))
        frames_B, time = self.frames_B, self.time
        for layer in whole.tdnn:
            lost = (layer.kernel_size - 1) * layer.dilation
            weight = values(layer.kernel.weight)
            weight = weight.reshape(layer.channels, layer.kernel_size, layer.incoming)
            read = g.op("Transpose", read, perm=[0, 2, 1])
            read = g.op(
                "Conv",
                read,
                np.ascontiguousarray(weight.transpose(0, 2, 1)),
                values(layer.kernel.bias),
                dilations=[layer.dilation],
            )
            read = g.op("Relu", g.op("Transpose", read, perm=[0, 2, 1]))
            frames_B, time = g.op("Sub", frames_B, lost), g.op("Sub", time, lost)
        # A deviation needs two frames; an utterance without them would come out as numbers that mean nothing.
        enough = g.op("GreaterOrEqual", frames_B, 2)
        bad = g.op("Add", bad, g.op("Where", enough, 0.0, np.float32(math.nan)))
        times = g.op("Unsqueeze", g.op("Range", 0, time, 1), [0])
        keep = g.op("Less", times, g.op("Unsqueeze", frames_B, [1]))
        mean, deviation = self._statistics(read, frames_B, g.op("Unsqueeze", keep, [2]))
        embeddings = linear(g.op("Concat", mean, deviation, axis=1), whole.feature_extractor)
        self.embeddings = g.op("Add", embeddings, g.op("Unsqueeze", bad, [1]))
        return g.op("Add", linear(embeddings, whole.classifier), g.op("Unsqueeze", bad, [1]))

    def _statistics(self, x: str, frames_B: str, keep: str) -> tuple[str, str]:
        """Mean and (unbiased) standard deviation over valid frames: (B, D) each."""
        g = self.graph
        count = g.op("Unsqueeze", g.op("Cast", frames_B, to=FLOAT), [1])
        mean = g.op("Div", g.op("ReduceSum", g.op("Where", keep, x, 0.0), [1], keepdims=0), count)
        centred = g.op("Sub", x, g.op("Unsqueeze", mean, [1]))
        centred = g.op("Where", keep, centred, 0.0)
        squares = g.op("ReduceSum", g.op("Mul", centred, centred), [1], keepdims=0)
        return mean, g.op("Sqrt", g.op("Div", squares, g.op("Sub", count, 1.0)))
