"""Networks as a person has them, who has never heard of this package."""

import torch
from torch import nn
from torch.nn import functional as F


class OwnNetwork(nn.Module):
    """Two resolutions, channels under other names, an argument that nothing uses, a parameter without a gradient."""

    def __init__(self, in_chans, n_classes, width=4, ndim=3):
        super().__init__()
        convolution, transposed = (nn.Conv2d, nn.ConvTranspose2d) if ndim == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        self.first = convolution(in_chans, width, 3, padding=1)
        self.down = convolution(width, width, 2, stride=2)
        self.up = transposed(width, width, 2, stride=2)
        self.out = convolution(width, n_classes, 1)
        self.forgotten = nn.Parameter(torch.zeros(3))
        nn.init.constant_(self.first.weight, 0.25)

    def forward(self, x):
        x = self.first(x).relu()
        return self.out(x + self.up(self.down(x)))


class Deep(OwnNetwork):
    """Deep supervision while it trains, lowest resolution first, beside something else."""

    def __init__(self, in_chans, n_classes, **options):
        super().__init__(in_chans, n_classes, **options)
        self.low = type(self.out)(self.out.in_channels, n_classes, 1)

    def forward(self, x):
        x = self.first(x).relu()
        low = self.down(x)
        logits = self.out(x + self.up(low))
        return (self.low(low), logits, {"loss": 0}) if self.training else logits


class Activated(OwnNetwork):
    """Something after its head."""

    def forward(self, x):
        return 2 * super().forward(x)


class Half(OwnNetwork):
    """Logits of half the size."""

    def forward(self, x):
        return F.avg_pool3d(super().forward(x), 2)


class Broken(nn.Module):
    """Cannot be built."""

    def __init__(self, in_channels, out_channels):
        raise RuntimeError("no such luck")


def function(in_channels, out_channels):
    return nn.Conv3d(in_channels, out_channels, 1)
