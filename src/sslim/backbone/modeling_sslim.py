"""The model of every `sslim` folder: HuBERT, WavLM, wav2vec 2.0 or data2vec-audio, dense or pruned.

This file needs only torch and transformers and is copied into each saved folder, so a folder loads in
a process that has never heard of `sslim`. A pruned model is the dense configuration plus a `plan`
(kept indices per layer); layers are built at the planned sizes. Weight names are those of the dense
family in transformers, with one exception: WavLM's relative-position table, shared by all layers,
sits at `encoder.rel_attn_embed` so that it outlives the first attention block.

Shape legend: B batch, S samples, T frames, D width of the residual stream, H heads, C channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    Data2VecAudioConfig,
    HubertConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    WavLMConfig,
)
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    CausalLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    Wav2Vec2BaseModelOutput,
    XVectorOutput,
)


class SslimHubertConfig(HubertConfig):
    """`HubertConfig` plus `plan`, the kept indices (None: dense), and `exact_padding`: with an attention
    mask, an utterance in a padded batch gives what it gives alone. False: as in the dense families, where
    padding enters the statistics of the first norm and leaks through stacked convolutions."""

    model_type = "sslim-hubert"
    plan: dict[str, Any] | None = None
    conv_output_scale: bool = False
    exact_padding: bool = True


class SslimWavLMConfig(WavLMConfig):
    """`WavLMConfig` plus what `SslimHubertConfig` adds."""

    model_type = "sslim-wavlm"
    plan: dict[str, Any] | None = None
    conv_output_scale: bool = False
    exact_padding: bool = True


class SslimWav2Vec2Config(Wav2Vec2Config):
    """`Wav2Vec2Config` plus what `SslimHubertConfig` adds."""

    model_type = "sslim-wav2vec2"
    plan: dict[str, Any] | None = None
    conv_output_scale: bool = False
    exact_padding: bool = True


class SslimData2VecAudioConfig(Data2VecAudioConfig):
    """`Data2VecAudioConfig` plus what `SslimHubertConfig` adds."""

    model_type = "sslim-data2vec-audio"
    plan: dict[str, Any] | None = None
    conv_output_scale: bool = False
    exact_padding: bool = True


def _kept(config: Any) -> tuple[list[int], list[list[int] | None], list[int | None]]:
    """Sizes the plan asks for: conv widths, kept heads per layer, FFN widths per layer."""
    layers = config.num_hidden_layers
    if config.plan is None:
        heads = list(range(config.num_attention_heads))
        return list(config.conv_dim), [heads] * layers, [config.intermediate_size] * layers
    return (
        [len(channels) for channels in config.plan["conv"]],
        [layer["heads"] for layer in config.plan["layers"]],
        [None if layer["ffn"] is None else len(layer["ffn"]) for layer in config.plan["layers"]],
    )


class ConvLayer(GradientCheckpointingLayer):
    """One strided convolution over time, its norm (if any) and its activation. (B, C, T) -> (B, C', T')."""

    def __init__(self, config: Any, index: int, incoming: int, channels: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            incoming,
            channels,
            config.conv_kernel[index],
            stride=config.conv_stride[index],
            bias=config.conv_bias,
        )
        self.norm = norm
        self.layer_norm: nn.Module
        if norm == "group":
            self.layer_norm = nn.GroupNorm(channels, channels)
        elif norm == "layer":
            self.layer_norm = nn.LayerNorm(channels)
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(self, x_BCT: torch.Tensor, frames_B: torch.Tensor | None = None) -> torch.Tensor:
        """Args: frames_B, frames of each utterance that are not padding (None: all)."""
        x_BCT = self.conv(x_BCT)
        if self.norm == "group":
            x_BCT = self._group_norm(x_BCT, frames_B)
        elif self.norm == "layer":
            x_BCT = self.layer_norm(x_BCT.transpose(1, 2)).transpose(1, 2)
        return self.activation(x_BCT)

    def _group_norm(self, x_BCT: torch.Tensor, frames_B: torch.Tensor | None) -> torch.Tensor:
        """Each channel to zero mean and unit variance over time, over its valid frames only."""
        if frames_B is None:
            return self.layer_norm(x_BCT)
        norm: Any = self.layer_norm
        x32_BCT = x_BCT.float() if x_BCT.dtype != torch.float64 else x_BCT
        times = torch.arange(x_BCT.shape[2], device=x_BCT.device)
        keep_B1T = (times[None] < frames_B[:, None])[:, None]
        count_B11 = frames_B.clamp(min=1)[:, None, None]
        mean_BC1 = (x32_BCT * keep_B1T).sum(2, keepdim=True) / count_B11
        centred_BCT = x32_BCT - mean_BC1
        variance_BC1 = (centred_BCT.square() * keep_B1T).sum(2, keepdim=True) / count_B11
        scale_BC1 = norm.weight[:, None] * torch.rsqrt(variance_BC1 + norm.eps)
        return (centred_BCT * scale_BC1 + norm.bias[:, None]).to(x_BCT.dtype)


class FeatureEncoder(nn.Module):
    """The convolutional front-end: waveform (B, S) -> features (B, T, C)."""

    def __init__(self, config: Any, widths: list[int]) -> None:
        super().__init__()
        norm = getattr(config, "feat_extract_norm", "layer")
        if config.model_type.endswith("data2vec-audio"):
            norm = "layer"
        self.conv_layers = nn.ModuleList(
            ConvLayer(
                config,
                index,
                widths[index - 1] if index else 1,
                width,
                norm if norm == "layer" or index == 0 else "none",
            )
            for index, width in enumerate(widths)
        )
        # Models converted from DPHuBERT files keep a scale in front of the next LayerNorm.
        self.output_scale = (
            nn.Parameter(torch.ones(widths[-1])) if config.conv_output_scale else None
        )

    def forward(
        self, waveform_BS: torch.Tensor, samples_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Args: samples_B, samples of each utterance that are not padding (None: all)."""
        x_BCT = waveform_BS[:, None]
        layers: list[Any] = list(self.conv_layers)
        for layer in layers:
            frames_B = None
            if samples_B is not None and layer.norm == "group":  # which only the first one has
                frames_B = (samples_B - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
            x_BCT = layer(x_BCT, frames_B)
        x_BTC = x_BCT.transpose(1, 2)
        return x_BTC if self.output_scale is None else x_BTC * self.output_scale


class FeatureProjection(nn.Module):
    """Front-end channels to the residual width: (B, T, C) -> (B, T, D), and the normed input."""

    def __init__(self, config: Any, channels: int) -> None:
        super().__init__()
        self.layer_norm = (
            nn.LayerNorm(channels, eps=config.layer_norm_eps)
            if getattr(config, "feat_proj_layer_norm", True)
            else None
        )
        self.projection = nn.Linear(channels, config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, x_BTC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.layer_norm is not None:
            x_BTC = self.layer_norm(x_BTC)
        return self.dropout(self.projection(x_BTC)), x_BTC


class PositionalConv1d(nn.Conv1d):
    """The kept taps of a grouped convolution over frames. (B, D, T) -> (B, D, T).

    Tap k of a kernel of K reads frame t + k - K // 2 for frame t, whichever others are kept. Each run of
    neighbouring taps is one convolution, so that taps that are gone are neither stored nor multiplied by.
    """

    def __init__(self, config: Any, index: int, kernel: int) -> None:
        plan = getattr(config, "plan", None) or {}
        taps = plan.get("axes", {}).get(f"tap.{index}", list(range(kernel)))
        width, groups = config.hidden_size, config.num_conv_pos_embedding_groups
        super().__init__(width, width, len(taps), padding=kernel // 2, groups=groups)
        self.complete = len(taps) == kernel
        starts = [n for n, tap in enumerate(taps) if n == 0 or tap != taps[n - 1] + 1]
        self.runs = [
            (taps[start] - kernel // 2, start, stop)
            for start, stop in zip(starts, [*starts[1:], len(taps)], strict=True)
        ]
        """Of each run: the frame that its first tap reads, from the own one on, and its slice of the taps."""

    def _conv_forward(
        self, x_BDT: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        frames = x_BDT.shape[2]
        if self.complete:
            # An even kernel padded by half of itself gives one frame too many.
            return super()._conv_forward(x_BDT, weight, bias)[..., :frames]
        reach = int(self.padding[0])
        padded_BDT = F.pad(x_BDT, (reach, reach))
        total_BDT: torch.Tensor | None = None
        for offset, start, stop in self.runs:
            first = reach + offset
            read_BDT = padded_BDT[..., first : first + frames + stop - start - 1]
            part_BDT = F.conv1d(read_BDT, weight[..., start:stop], bias, groups=self.groups)
            bias = None
            # Terms that are rounded already are added up in float32 at least.
            wide_BDT = part_BDT.to(torch.promote_types(part_BDT.dtype, torch.float32))
            total_BDT = wide_BDT if total_BDT is None else total_BDT + wide_BDT
        assert total_BDT is not None  # a tap at least is always kept
        return total_BDT.to(part_BDT.dtype)


class PositionalConv(nn.Module):
    """Grouped convolution that encodes position. (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.conv: Any = PositionalConv1d(config, 0, config.num_conv_pos_embeddings)
        self.batch_norm: nn.Module | None
        if getattr(config, "conv_pos_batch_norm", False):
            self.batch_norm = nn.BatchNorm1d(config.hidden_size)
        else:
            self.batch_norm = None
            self.conv = nn.utils.parametrizations.weight_norm(self.conv, name="weight", dim=2)
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(self, x_BTD: torch.Tensor, keep_BT: torch.Tensor | None = None) -> torch.Tensor:
        x_BDT = x_BTD.transpose(1, 2)
        if self.batch_norm is not None:
            x_BDT = _without_padding(self.batch_norm(x_BDT), keep_BT)
        return self.activation(_convolved(self.conv, x_BDT)).transpose(1, 2)


class PositionalConvLayer(nn.Module):
    """One of data2vec's stacked positional convolutions. (B, D, T) -> (B, D, T)."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        self.conv = PositionalConv1d(config, index, config.conv_pos_kernel_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, elementwise_affine=False)
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(self, x_BDT: torch.Tensor) -> torch.Tensor:
        x_BDT = _convolved(self.conv, x_BDT)
        x_BDT = self.layer_norm(x_BDT.transpose(1, 2)).transpose(1, 2)
        return self.activation(x_BDT)


class StackedPositionalConv(nn.Module):
    """data2vec's positional encoding: several short convolutions. (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PositionalConvLayer(config, index) for index in range(config.num_conv_pos_embeddings)
        )

    def forward(self, x_BTD: torch.Tensor, keep_BT: torch.Tensor | None = None) -> torch.Tensor:
        x_BDT = x_BTD.transpose(1, 2)
        for layer in self.layers:
            x_BDT = layer(_without_padding(x_BDT, keep_BT))
        return x_BDT.transpose(1, 2)


def _convolved(conv: PositionalConv1d, x_BDT: torch.Tensor) -> torch.Tensor:
    """A positional convolution, in float32 where a CPU's bfloat16 would give something else altogether.

    oneDNN's bfloat16 convolutions are wrong (not coarse: uncorrelated) on processors with AMX where a group
    has fewer than 16 channels and the kernel is long. Only small models have such groups.
    """
    lower = x_BDT.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if x_BDT.device.type != "cpu" or not lower or conv.in_channels // conv.groups >= 16:
        convolved: torch.Tensor = conv(x_BDT)
        return convolved
    bias = None if conv.bias is None else conv.bias.float()
    with torch.autocast("cpu", enabled=False):
        exact = conv._conv_forward(x_BDT.float(), conv.weight.float(), bias)
    return exact.to(x_BDT.dtype)


def _without_padding(x_BDT: torch.Tensor, keep_BT: torch.Tensor | None) -> torch.Tensor:
    """Zeros where a convolution would find zeros if the utterance were alone."""
    return x_BDT if keep_BT is None else x_BDT.masked_fill(~keep_BT[:, None], 0.0)


class ConstantOutput(nn.Module):
    """What is left of a block whose heads or units are all gone: its output bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.bias.to(x_BTD.dtype).expand_as(x_BTD)


class Attention(nn.Module):
    """Self-attention of the kept heads. (B, T, D) -> (B, T, D).

    For WavLM, `heads` says *which* heads are kept: each head gates its relative-position bias with its
    own slice of the input (WavLM, Chen et al. 2022, section III-A).
    """

    def __init__(self, config: Any, heads: list[int]) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = list(heads)
        self.bias_rows: list[int] | None = None  # this layer's rows of the shared position bias
        self.total_heads = config.num_attention_heads
        self.head_size = width // config.num_attention_heads
        self.dropout = config.attention_dropout
        self.gated_position = config.model_type.endswith("wavlm") and len(heads) > 0
        self.out_proj: nn.Module
        if not heads:
            self.out_proj = ConstantOutput(width)
            return
        inner = len(heads) * self.head_size
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.q_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)
        if self.gated_position:
            self.gru_rel_pos_const = nn.Parameter(torch.ones(1, len(heads), 1, 1))
            self.gru_rel_pos_linear = nn.Linear(self.head_size, 8)

    def position_gate(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """WavLM's gate on the position bias: (B, T, D) -> (B, H, T, 1)."""
        batch, time, _ = x_BTD.shape
        x_BTHd = x_BTD.view(batch, time, self.total_heads, self.head_size)
        if len(self.heads) < self.total_heads:
            x_BTHd = x_BTHd[:, :, self.heads]
        gates = self.gru_rel_pos_linear(x_BTHd.transpose(1, 2))
        gates = gates.view(batch, len(self.heads), time, 2, 4).sum(-1)
        update, reset = torch.sigmoid(gates).chunk(2, dim=-1)
        return update * (reset * self.gru_rel_pos_const - 1.0) + 2.0

    def forward(
        self,
        x_BTD: torch.Tensor,
        keep_B11T: torch.Tensor | None,
        position_HTT: torch.Tensor | None,
        need_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not self.heads:
            return self.out_proj(x_BTD), None
        batch, time, _ = x_BTD.shape
        split = (batch, time, len(self.heads), self.head_size)
        q_BHTd = self.q_proj(x_BTD).view(split).transpose(1, 2)
        k_BHTd = self.k_proj(x_BTD).view(split).transpose(1, 2)
        v_BHTd = self.v_proj(x_BTD).view(split).transpose(1, 2)
        mask = keep_B11T
        if self.gated_position and position_HTT is not None:
            if self.bias_rows is not None:
                position_HTT = position_HTT[self.bias_rows]
            mask = (self.position_gate(x_BTD) * position_HTT).to(q_BHTd.dtype)
            if keep_B11T is not None:
                mask = mask.masked_fill(~keep_B11T, -math.inf)
        dropout = self.dropout if self.training else 0.0
        weights = None
        # On a CPU in bfloat16 plain products beat the fused kernel (its backward up to five times).
        plain = q_BHTd.dtype == torch.bfloat16 and q_BHTd.device.type == "cpu" and time <= 1500
        if need_weights or plain:
            scores = (q_BHTd * self.head_size**-0.5) @ k_BHTd.transpose(2, 3)
            if mask is not None:
                scores = (
                    scores.masked_fill(~mask, -math.inf)
                    if mask.dtype == torch.bool
                    else scores + mask
                )
            weights = scores.softmax(-1)
            out_BHTd = F.dropout(weights, dropout, self.training) @ v_BHTd
        else:
            out_BHTd = F.scaled_dot_product_attention(
                q_BHTd, k_BHTd, v_BHTd, attn_mask=mask, dropout_p=dropout
            )
        out_BTD = self.out_proj(out_BHTd.transpose(1, 2).reshape(batch, time, -1))
        return out_BTD, weights if need_weights else None


class FeedForward(nn.Module):
    """The kept intermediate units between two linear maps. (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Any, units: int) -> None:
        super().__init__()
        self.units = units
        self.output_dropout = nn.Dropout(config.hidden_dropout)
        self.output_dense: nn.Module
        if units == 0:
            self.output_dense = ConstantOutput(config.hidden_size)
            return
        self.intermediate_dense = nn.Linear(config.hidden_size, units)
        self.activation = ACT2FN[config.hidden_act]
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.output_dense = nn.Linear(units, config.hidden_size)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        if self.units:
            x_BTD = self.intermediate_dropout(self.activation(self.intermediate_dense(x_BTD)))
        return self.output_dropout(self.output_dense(x_BTD))


class EncoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each optional, around the residual stream. (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Any, heads: list[int] | None, units: int | None) -> None:
        super().__init__()
        self.norm_first = getattr(config, "do_stable_layer_norm", False)
        self.attention = None if heads is None else Attention(config, heads)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = None if units is None else FeedForward(config, units)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        x_BTD: torch.Tensor,
        keep_B11T: torch.Tensor | None = None,
        position_HTT: torch.Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        weights = None
        if self.attention is not None:
            read = self.layer_norm(x_BTD) if self.norm_first else x_BTD
            written, weights = self.attention(read, keep_B11T, position_HTT, need_weights)
            x_BTD = x_BTD + self.dropout(written)
        if self.norm_first:
            if self.feed_forward is not None:
                x_BTD = x_BTD + self.feed_forward(self.final_layer_norm(x_BTD))
        else:
            # The norms of a post-norm layer stay when its blocks are gone: they are on the main path.
            x_BTD = self.layer_norm(x_BTD)
            if self.feed_forward is not None:
                x_BTD = x_BTD + self.feed_forward(x_BTD)
            x_BTD = self.final_layer_norm(x_BTD)
        return x_BTD, weights


class Encoder(nn.Module):
    """Positional convolution and transformer layers."""

    def __init__(self, config: Any, heads: list[list[int] | None], units: list[int | None]) -> None:
        super().__init__()
        self.config = config
        self.norm_first = getattr(config, "do_stable_layer_norm", False)
        data2vec = config.model_type.endswith("data2vec-audio")
        self.pos_conv_embed = StackedPositionalConv(config) if data2vec else PositionalConv(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(config, kept, width) for kept, width in zip(heads, units, strict=True)
        )
        self.rel_attn_embed = (
            nn.Embedding(config.num_buckets, config.num_attention_heads)
            if config.model_type.endswith("wavlm") and any(heads)
            else None
        )
        # The position bias is computed once per forward, for the heads that some layer kept.
        self.bias_heads = sorted({head for kept in heads for head in kept or ()})
        for layer in self.layers:
            attention: Any = layer.attention
            if attention is not None and attention.heads != self.bias_heads:
                attention.bias_rows = [self.bias_heads.index(head) for head in attention.heads]
        self.gradient_checkpointing = False

    def position_bias(self, frames: int) -> torch.Tensor | None:
        """WavLM's relative-position bias of the heads that some layer kept, (H, T, T), before any gate;
        None for the other families."""
        if self.rel_attn_embed is None:
            return None
        device = self.rel_attn_embed.weight.device
        position = torch.arange(frames, device=device)
        # The bias depends on the distance alone: look up 2T - 1 distances, then index.
        distance = torch.arange(1 - frames, frames, device=device)
        half = self.config.num_buckets // 2
        exact = half // 2
        magnitude = distance.abs()
        scale = math.log(self.config.max_bucket_distance / exact)
        far = torch.log(magnitude.clamp(min=1).float() / exact) / scale * (half - exact)
        far = (exact + far).to(torch.long).clamp(max=half - 1)
        bucket = (
            torch.where(magnitude < exact, magnitude, far) + (distance > 0).to(torch.long) * half
        )
        table = self.rel_attn_embed(bucket)
        if len(self.bias_heads) < table.shape[1]:
            table = table[:, self.bias_heads]
        return table[position[None, :] - position[:, None] + frames - 1].permute(2, 0, 1)

    def embed(
        self, x_BTD: torch.Tensor, keep_BT: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Input of the first layer: padding zeroed, position added. Also the attention mask."""
        keep_B11T = None
        if keep_BT is not None:
            x_BTD = x_BTD.masked_fill(~keep_BT[..., None], 0.0)
            keep_B11T = keep_BT[:, None, None]
        exact = getattr(self.config, "exact_padding", True)
        x_BTD = x_BTD + self.pos_conv_embed(x_BTD, keep_BT if exact else None)
        if not self.norm_first:
            x_BTD = self.layer_norm(x_BTD)
        return self.dropout(x_BTD), keep_B11T


class SslimPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by the families."""

    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["EncoderLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises weights that no checkpoint brought, as the dense families do."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ConstantOutput):
            nn.init.zeros_(module.bias)
        elif isinstance(module, Attention) and module.gated_position:
            nn.init.ones_(module.gru_rel_pos_const)
        elif isinstance(module, FeatureEncoder) and module.output_scale is not None:
            nn.init.ones_(module.output_scale)
        elif isinstance(module, SslimModel) and module.masked_spec_embed is not None:
            nn.init.uniform_(module.masked_spec_embed)
        elif isinstance(module, AMSoftmaxLoss):
            nn.init.normal_(module.weight)
        elif isinstance(module, _Head) and module.layer_weights is not None:
            nn.init.constant_(module.layer_weights, 1.0 / module.layer_weights.numel())

    def _get_feat_extract_output_lengths(self, samples: Any) -> Any:
        """Frames for a number of samples."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def _get_feature_vector_attention_mask(
        self, frames: int, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Sample mask (B, S) -> frame mask (B, T), True where a frame is valid."""
        lengths = self._get_feat_extract_output_lengths(attention_mask.sum(-1).to(torch.long))
        return torch.arange(frames, device=attention_mask.device)[None] < lengths[:, None]


class SslimModel(SslimPreTrainedModel):
    """The backbone. `hidden_states` mean what they mean for the dense family in transformers:
    index 0 is the input of the first layer, index k the output of layer k."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if getattr(config, "add_adapter", False) or getattr(config, "adapter_attn_dim", None):
            raise ValueError("sslim models have no adapter layers; remove the adapter first")
        conv, heads, units = _kept(config)
        self.feature_extractor = FeatureEncoder(config, conv)
        self.feature_projection = FeatureProjection(config, conv[-1])
        self.encoder = Encoder(config, heads, units)
        masked = config.mask_time_prob > 0.0 or config.mask_feature_prob > 0.0
        self.masked_spec_embed = (
            nn.Parameter(torch.empty(config.hidden_size).uniform_()) if masked else None
        )
        self.post_init()

    def freeze_feature_encoder(self) -> None:
        """Stops gradients for the convolutional front-end."""
        self.feature_extractor.requires_grad_(False)

    def project(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Output of the feature projection (B, T, D), its normed input, and which frames are valid (B, T)."""
        if input_values.dim() != 2:
            raise ValueError(
                f"expected waveforms of shape (batch, samples), got {tuple(input_values.shape)}"
            )
        if int(self._get_feat_extract_output_lengths(input_values.shape[1])) < 1:
            raise ValueError(
                f"audio of {input_values.shape[1]} samples is too short for one frame; "
                "give at least 25 ms (400 samples at 16 kHz)"
            )
        if not input_values.is_floating_point():
            raise ValueError(
                f"waveforms are {input_values.dtype}; divide by the largest value and convert to float32"
            )
        # Not while training, where the loss says so, nor on a GPU, where asking would stop the queue.
        looks = not self.training and input_values.device.type == "cpu"
        if looks and not bool(torch.isfinite(input_values).all()):
            raise ValueError("waveforms hold NaN or infinity")
        samples_B = None
        if attention_mask is not None and getattr(self.config, "exact_padding", True):
            samples_B = attention_mask.sum(-1).to(torch.long)
        features = self.feature_extractor(input_values, samples_B)
        keep_BT = None
        if attention_mask is not None:
            keep_BT = self._get_feature_vector_attention_mask(features.shape[1], attention_mask)
        projected, normed = self.feature_projection(features)
        return projected, normed, keep_BT

    def distillation_features(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        last_layer: int | None = None,
        masked_BT: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Hidden states in DPHuBERT's numbering, each (B, T, D): index 0 is the output of the feature
        projection, before any frame is masked or position added; index k is the output of layer k.

        Stops after `last_layer`, so that nothing is computed that nobody reads.
        """
        projected, _, keep_BT = self.project(input_values, attention_mask)
        states = self.layer_states(projected, keep_BT, last_layer, masked_BT)
        if keep_BT is not None:
            projected = projected.masked_fill(~keep_BT[..., None], 0.0)
        return [projected, *states[1:]]

    def layer_states(
        self,
        x_BTD: torch.Tensor,
        keep_BT: torch.Tensor | None = None,
        last_layer: int | None = None,
        masked_BT: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Input of the first layer and output of each up to `last_layer`, (B, T, D), for projected features;
        frames where `masked_BT` is True are not heard (wav2vec 2.0, Baevski et al. 2020, section 3.1).
        """
        if masked_BT is not None:
            x_BTD = self._without_frames(x_BTD, masked_BT)
        x_BTD, keep_B11T = self.encoder.embed(x_BTD, keep_BT)
        states = [x_BTD]
        position_HTT = self.encoder.position_bias(x_BTD.shape[1])
        for layer in self.encoder.layers[:last_layer]:
            x_BTD, _ = layer(x_BTD, keep_B11T, position_HTT)
            states.append(x_BTD)
        return states

    def _without_frames(self, x_BTD: torch.Tensor, masked_BT: torch.Tensor) -> torch.Tensor:
        """Masked frames exchanged for the learned vector, or for zeros where the model has none."""
        if self.masked_spec_embed is None:
            return x_BTD.masked_fill(masked_BT[..., None], 0.0)
        return torch.where(masked_BT[..., None], self.masked_spec_embed.to(x_BTD.dtype), x_BTD)

    def _spec_augment(self, x_BTD: torch.Tensor, keep_BT: torch.Tensor | None) -> torch.Tensor:
        """SpecAugment (Park et al. 2019) in fine-tuning, with the settings of the dense family."""
        config = self.config
        if not (self.training and getattr(config, "apply_spec_augment", True)):
            return x_BTD
        batch, time, width = x_BTD.shape
        if config.mask_time_prob > 0:
            masked_BT = _spans(batch, time, config, "time").to(x_BTD.device)
            if keep_BT is not None:
                masked_BT = masked_BT & keep_BT
            x_BTD = self._without_frames(x_BTD, masked_BT)
        if config.mask_feature_prob > 0:
            masked_BD = _spans(batch, width, config, "feature").to(x_BTD.device)
            x_BTD = x_BTD.masked_fill(masked_BD[:, None], 0.0)
        return x_BTD

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """
        Args:
            input_values: waveforms at 16 kHz, (B, S), normalised as `preprocessor_config.json` says.
            attention_mask: 1 for valid samples, (B, S).
        """
        config = self.config
        need_weights = config.output_attentions if output_attentions is None else output_attentions
        keep_states = (
            config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        projected, normed, keep_BT = self.project(input_values, attention_mask)
        x_BTD = self._spec_augment(projected, keep_BT)
        x_BTD, keep_B11T = self.encoder.embed(x_BTD, keep_BT)
        position_HTT = self.encoder.position_bias(x_BTD.shape[1])
        states, attentions = [x_BTD], []
        for layer in self.encoder.layers:
            x_BTD, weights = layer(x_BTD, keep_B11T, position_HTT, need_weights)
            states.append(x_BTD)
            attentions.append(weights)
        if self.encoder.norm_first:
            x_BTD = self.encoder.layer_norm(x_BTD)
        output = Wav2Vec2BaseModelOutput(
            last_hidden_state=x_BTD,
            extract_features=normed,
            hidden_states=tuple(states) if keep_states else None,
            attentions=tuple(attentions) if need_weights else None,
        )
        as_dict = config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


def _spans(rows: int, length: int, config: Any, axis: str) -> torch.Tensor:
    """Random spans, (rows, length) bool, that cover `mask_AXIS_prob` of each row on average or less."""
    share, span, at_least = (
        getattr(config, f"mask_{axis}_{name}") for name in ("prob", "length", "min_masks")
    )
    masked = torch.zeros(rows, length, dtype=torch.bool)
    if span > length:
        return masked
    count = max(at_least, int(share * length / span + torch.rand(()).item()))
    for row in masked:
        for start in torch.randperm(length - span + 1)[:count].tolist():
            row[start : start + span] = True
    return masked


class _Head(SslimPreTrainedModel):
    """A backbone under its family's usual name, and what the four heads share."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        setattr(self, self.base_model_prefix, SslimModel(config))
        count = config.num_hidden_layers + 1
        weighted = getattr(config, "use_weighted_layer_sum", False)
        self.layer_weights = nn.Parameter(torch.ones(count) / count) if weighted else None

    @property
    def backbone(self) -> SslimModel:
        return getattr(self, self.base_model_prefix)

    def freeze_feature_encoder(self) -> None:
        """Stops gradients for the convolutional front-end."""
        self.backbone.freeze_feature_encoder()

    def freeze_base_model(self) -> None:
        """Stops gradients for the backbone: only the head learns."""
        self.backbone.requires_grad_(False)

    def _read(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, Any]:
        """Runs the backbone; the head's input is its output or the weighted sum of its layers."""
        kwargs = {**kwargs, "return_dict": True}
        asked = kwargs.get("output_hidden_states")
        if self.layer_weights is not None:
            kwargs["output_hidden_states"] = True
        outputs = self.backbone(input_values, attention_mask=attention_mask, **kwargs)
        read = outputs.last_hidden_state
        if self.layer_weights is not None:
            weights = self.layer_weights.softmax(-1)
            read = (torch.stack(outputs.hidden_states, 1) * weights.view(-1, 1, 1)).sum(1)
            wanted = self.config.output_hidden_states if asked is None else asked
            if not wanted:
                outputs.hidden_states = None
        return read, outputs

    def _give(self, output: Any, return_dict: bool | None) -> Any:
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


class _ForCTC(_Head):
    """A frame-wise linear head for connectionist temporal classification."""

    def __init__(self, config: Any, **_: Any) -> None:
        super().__init__(config)
        self.layer_weights = None
        self.dropout = nn.Dropout(config.final_dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Args: as the backbone; labels (B, L) with -100 for padding. Returns logits (B, T, vocabulary)."""
        if labels is not None and labels.max() >= self.config.vocab_size:
            raise ValueError(f"labels must be below vocab_size {self.config.vocab_size}")
        read, outputs = self._read(input_values, attention_mask, kwargs)
        logits = self.lm_head(self.dropout(read))
        loss = None
        if labels is not None:
            samples = (
                torch.full((input_values.shape[0],), input_values.shape[1], device=logits.device)
                if attention_mask is None
                else attention_mask.sum(-1).to(torch.long)
            )
            valid = labels >= 0
            loss = F.ctc_loss(
                logits.float().log_softmax(-1).transpose(0, 1),
                labels.masked_select(valid),
                self._get_feat_extract_output_lengths(samples),
                valid.sum(-1),
                blank=self.config.pad_token_id,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            )
        return self._give(
            CausalLMOutput(loss, logits, outputs.hidden_states, outputs.attentions), return_dict
        )


class _ForSequenceClassification(_Head):
    """Projection, mean over frames, linear classifier."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Args: as the backbone; labels (B,). Returns logits (B, classes)."""
        read, outputs = self._read(input_values, attention_mask, kwargs)
        read = self.projector(read)
        if attention_mask is None:
            pooled = read.mean(1)
        else:
            keep_BT = self._get_feature_vector_attention_mask(read.shape[1], attention_mask)
            pooled = read.masked_fill(~keep_BT[..., None], 0.0).sum(1) / keep_BT.sum(
                1, keepdim=True
            )
        logits = self.classifier(pooled)
        loss = None if labels is None else F.cross_entropy(logits, labels.view(-1))
        return self._give(
            SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions),
            return_dict,
        )


class _ForAudioFrameClassification(_Head):
    """A linear classifier on every frame."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Args: as the backbone; labels one-hot (B, T, classes). Returns logits (B, T, classes)."""
        read, outputs = self._read(input_values, attention_mask, kwargs)
        logits = self.classifier(read)
        loss = None
        if labels is not None:
            classes = self.classifier.out_features
            loss = F.cross_entropy(logits.view(-1, classes), labels.view(-1, classes).argmax(1))
        return self._give(
            TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions),
            return_dict,
        )


class AMSoftmaxLoss(nn.Module):
    """Additive-margin softmax (Wang et al. 2018) over normalised embeddings."""

    def __init__(self, width: int, classes: int, scale: float = 30.0, margin: float = 0.4) -> None:
        super().__init__()
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.randn(width, classes))

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cosine = F.normalize(embeddings, dim=1) @ F.normalize(self.weight, dim=0)
        target = F.one_hot(labels.flatten(), cosine.shape[1])
        return F.cross_entropy(self.scale * (cosine - self.margin * target), labels.flatten())


class TDNNLayer(nn.Module):
    """A dilated convolution over frames whose weight is stored as a linear map. (B, T, C) -> (B, T', C')."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        self.incoming = config.tdnn_dim[max(0, index - 1)]
        self.channels = config.tdnn_dim[index]
        self.kernel_size = config.tdnn_kernel[index]
        self.dilation = config.tdnn_dilation[index]
        self.kernel = nn.Linear(self.incoming * self.kernel_size, self.channels)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        weight = self.kernel.weight.view(self.channels, self.kernel_size, self.incoming)
        x_BCT = F.conv1d(
            x_BTC.transpose(1, 2), weight.transpose(1, 2), self.kernel.bias, dilation=self.dilation
        )
        return F.relu(x_BCT.transpose(1, 2))


class _ForXVector(_Head):
    """Time-delay network with statistics pooling (Snyder et al. 2018) for speaker embeddings."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.projector = nn.Linear(config.hidden_size, config.tdnn_dim[0])
        self.tdnn = nn.ModuleList(TDNNLayer(config, index) for index in range(len(config.tdnn_dim)))
        self.feature_extractor = nn.Linear(config.tdnn_dim[-1] * 2, config.xvector_output_dim)
        self.classifier = nn.Linear(config.xvector_output_dim, config.xvector_output_dim)
        self.objective = AMSoftmaxLoss(config.xvector_output_dim, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Args: as the backbone; labels (B,). Returns logits and embeddings, (B, width) each."""
        read, outputs = self._read(input_values, attention_mask, kwargs)
        read = self.projector(read)
        for layer in self.tdnn:
            read = layer(read)
        if attention_mask is None:
            mean, deviation = read.mean(1), read.std(1)
        else:
            lengths = self._get_feat_extract_output_lengths(attention_mask.sum(1).to(torch.long))
            exact = getattr(self.config, "exact_padding", True)
            layers: list[Any] = list(self.tdnn)
            for layer in layers:
                # The dense families do not consider the dilation, and so read frames of padding.
                dilation = layer.dilation if exact else 1
                lengths = lengths - (layer.kernel_size - 1) * dilation
            rows = [row[:length] for row, length in zip(read, lengths.tolist(), strict=True)]
            mean = torch.stack([row.mean(0) for row in rows])
            deviation = torch.stack([row.std(0) for row in rows])
        embeddings = self.feature_extractor(torch.cat([mean, deviation], -1))
        logits = self.classifier(embeddings)
        loss = None if labels is None else self.objective(logits, labels)
        return self._give(
            XVectorOutput(loss, logits, embeddings, outputs.hidden_states, outputs.attentions),
            return_dict,
        )


# transformers' Auto classes tell models apart by class and by name, hence one class per family and head.
# The heads' bodies are above; only configuration and prefix (where the weights of the backbone sit) differ.


def _classes(config_class: type, stem: str, prefix: str) -> dict[str, type]:
    bodies = {
        "Model": SslimModel,
        "ForCTC": _ForCTC,
        "ForSequenceClassification": _ForSequenceClassification,
        "ForAudioFrameClassification": _ForAudioFrameClassification,
        "ForXVector": _ForXVector,
    }
    made = {}
    for ending, body in bodies.items():
        name = f"{stem}{ending}"
        contents = {
            "__module__": __name__,
            "__doc__": f"{stem.removeprefix('Sslim')}: {(body.__doc__ or '').splitlines()[0]}",
            "config_class": config_class,
            "base_model_prefix": prefix,
        }
        made[name] = type(name, (body,), contents)
    return made


globals().update(_classes(SslimHubertConfig, "SslimHubert", "hubert"))
globals().update(_classes(SslimWavLMConfig, "SslimWavLM", "wavlm"))
globals().update(_classes(SslimWav2Vec2Config, "SslimWav2Vec2", "wav2vec2"))
globals().update(_classes(SslimData2VecAudioConfig, "SslimData2VecAudio", "data2vec_audio"))
