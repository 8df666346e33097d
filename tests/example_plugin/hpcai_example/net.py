"""The heavy half, imported on the compute node: cut into patches, a perceptron on each, mean, linear."""

from torch import Tensor, nn

from hpcai.config.schema import Model


class Patches(nn.Module):
    def __init__(self, in_channels: int, classes: int, patch: int, hidden: int) -> None:
        super().__init__()
        self.cut = nn.Conv2d(in_channels, hidden, patch, stride=patch)
        self.mix = nn.Sequential(nn.ReLU(), nn.Conv2d(hidden, hidden, 1), nn.ReLU())
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.cut(x)).mean(dim=(2, 3)))


def build(cfg: Model, in_channels: int, classes: int) -> nn.Module:
    """`cfg.options` is checked and holds the defaults of Options."""
    return Patches(in_channels, classes, cfg.options["patch"], cfg.options["hidden"])
