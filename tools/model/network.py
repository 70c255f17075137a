"""Whisper in PyTorch (Radford et al., 2022), with the parts needed for training only: a CTC head, attention weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Positions: faster-whisper pads to 3000 frames and asks for 448 tokens, whatever the files say.
AUDIO_POSITIONS = 1500
TEXT_POSITIONS = 448


@dataclass(frozen=True)
class Shape:
    """The dimensions of the network."""

    mels: int
    vocabulary: int
    alphabet: int
    width: int = 128
    heads: int = 2
    encoder_layers: int = 2
    decoder_layers: int = 2
    encoder_inner: int = 256
    decoder_inner: int = 256


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's fixed positions: sines in the first half of the channels, cosines in the second."""
    steps = torch.exp(-math.log(10000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * steps[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, memory: Tensor, rows: Tensor | None = None, causal: bool = False) -> Tensor:
        """`rows` tells which row of the memory each row of `x` looks at; without it, the one beside it."""
        query, key, value = self._split(self.query(x)), *self._remembered(memory, rows)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def with_weights(self, x: Tensor, memory: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the weights [batch, heads, queries, keys]."""
        query, key, value = self._split(self.query(x)), *self._remembered(memory, rows)
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2)), weights

    def _remembered(self, memory: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        key, value = self._split(self.key(memory)), self._split(self.value(memory))
        return (key, value) if rows is None else (key.index_select(0, rows), value.index_select(0, rows))


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.rise, self.fall = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed)
        return x + self.fall(F.gelu(self.rise(self.mlp_norm(x))))


class DecoderLayer(EncoderLayer):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__(width, heads, inner)
        self.cross_norm = nn.LayerNorm(width)
        self.cross = Attention(width, heads)

    def decode(self, x: Tensor, memory: Tensor, rows: Tensor, with_weights: bool) -> tuple[Tensor, Tensor | None]:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, causal=True)
        weights = None
        if with_weights:
            mixed, weights = self.cross.with_weights(self.cross_norm(x), memory, rows)
        else:
            mixed = self.cross(self.cross_norm(x), memory, rows)
        x = x + mixed
        return x + self.fall(F.gelu(self.rise(self.mlp_norm(x)))), weights


class Whisper(nn.Module):
    """Features [batch, mels, frames], tokens [batch, length] → decoder states, CTC logits, the last attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.conv1 = nn.Conv1d(shape.mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.register_buffer("positions", sinusoids(AUDIO_POSITIONS, width))
        self.encoder = nn.ModuleList(
            EncoderLayer(width, shape.heads, shape.encoder_inner) for _ in range(shape.encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.tokens = nn.Embedding(shape.vocabulary, width)
        self.text_positions = nn.Parameter(torch.randn(TEXT_POSITIONS, width) * 0.01)
        self.decoder = nn.ModuleList(
            DecoderLayer(width, shape.heads, shape.decoder_inner) for _ in range(shape.decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.ctc = nn.Linear(width, shape.alphabet + 1)  # the last is the blank
        nn.init.normal_(self.tokens.weight, std=0.05)

    def encode(self, features: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(features)))).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        for layer in self.encoder:
            x = layer(x)
        return self.encoder_norm(x)

    def forward(self, features: Tensor, tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`rows` tells of which row of features each row of tokens is written."""
        memory = self.encode(features)
        x = self.tokens(tokens) + self.text_positions[: tokens.shape[1]]
        for layer in self.decoder:
            x, weights = layer.decode(x, memory, rows, layer is self.decoder[-1])
        return self.decoder_norm(x), self.ctc(memory), weights

    def logits(self, states: Tensor) -> Tensor:
        """The logits of the next token, from states of the decoder."""
        return states @ self.tokens.weight.T
