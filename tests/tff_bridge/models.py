"""Small torch models, one for each family that the operator table covers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Mlp(nn.Sequential):
    example = torch.randn(5, 20)

    def __init__(self):
        super().__init__(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))


class Activations(nn.Module):
    """The elementwise operators."""

    example = torch.randn(5, 12)

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x):
        h = self.first(x)
        h = F.gelu(h) + F.gelu(h, approximate="tanh") - F.silu(h) * torch.sigmoid(h)
        h = h + F.leaky_relu(h, 0.2) + F.elu(h, 0.7) + torch.tanh(h) / 2
        h = h + torch.exp(-torch.abs(h)) + (h**2 + 1).sqrt() + torch.rsqrt(h**2 + 2)
        h = torch.clamp(h, -3, 3) + F.relu6(h) + F.hardtanh(h) + (1 - h).clamp(min=0.1)
        return F.log_softmax(self.last(h), dim=-1)


class Cnn(nn.Module):
    """Padding, stride, groups, dilation, both kinds of pooling."""

    example = torch.randn(3, 2, 14, 12)

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 8, 3, padding=1, stride=2)
        self.b = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=4, bias=False)
        self.c = nn.Conv2d(8, 6, 3, padding="same", dilation=2)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.out = nn.Linear(6 * 2, 4)

    def forward(self, x):
        h = self.pool(F.relu(self.b(F.relu(self.a(x))), inplace=True))
        h = F.avg_pool2d(self.c(h), (2, 2), padding=(0, 1))
        h = F.adaptive_avg_pool2d(h, (2, 1)) if h.shape[2] % 2 == 0 else h
        return self.out(h.flatten(1))


class ResNet(nn.Module):
    """Skip connections, GroupNorm, global pooling, dropout that does nothing."""

    example = torch.randn(3, 1, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, 8)
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(inplace=True)
        )
        self.pool, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.0)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        h = F.relu(self.norm(self.stem(x)))
        h = h + self.body(h)
        return self.out(self.drop(torch.flatten(self.pool(h), 1)))


class Transformer(nn.Module):
    """Tokens, learnt positions, two encoder layers."""

    example = torch.randint(0, 30, (3, 7))

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(30, 12, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(1, 7, 12) * 0.1)
        layer = nn.TransformerEncoderLayer(
            *(12, 3, 20), dropout=0.0, batch_first=True, activation="gelu"
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(12, 4)

    def forward(self, x):
        return self.out(self.layers(self.tokens(x) + self.positions).mean(1))


class Causal(nn.Module):
    """Attention written by hand, with a mask that is a buffer."""

    example = torch.randn(3, 5, 8)

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 4)
        self.register_buffer("mask", torch.tril(torch.ones(5, 5)).bool())

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1)
        h = torch.cat([h, torch.matmul(scores, v)], dim=1)
        return self.out(h[:, 1:8].sum(1))


class Lstm(nn.Module):
    """Two layers of LSTM over tokens."""

    example = torch.randint(0, 30, (3, 6))

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(30, 8)
        self.lstm = nn.LSTM(8, 10, num_layers=2, batch_first=True)
        self.out = nn.Linear(10, 4)

    def forward(self, x):
        h, (last, _) = self.lstm(self.tokens(x))
        return self.out(h[:, -1] + last[-1])


class Frozen(nn.Module):
    """Batch normalisation, and a layer that does not learn."""

    example = torch.randn(6, 1, 5, 5)

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.fixed, self.out = nn.Linear(36, 8), nn.Linear(8, 4)
        self.fixed.requires_grad_(False)

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x)))
        return self.out(self.fixed(h.flatten(1)))


class Signal(nn.Sequential):
    """One-dimensional convolution."""

    example = torch.randn(3, 2, 16)

    def __init__(self):
        super().__init__(
            nn.Conv1d(2, 6, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 4),
        )


MODELS = (*(Mlp, Activations, Cnn, ResNet, Transformer, Causal, Lstm, Frozen, Signal),)
