"""ResNet-18, ResNet-50 and DenseNet-121 from MONAI (extra `imaging`), by call: their keys in a state_dict are MONAI's.

In two or three dimensions, any channels. MONAI's ResNets apply `norm` to the first layer alone and have no dropout, so both are
set here, the same way for all. DenseNet-121 halves an image five times: it needs 32 pixels a side at least.
"""

from __future__ import annotations

from typing import Any

from monai.networks.nets import DenseNet121, resnet18, resnet50
from torch import nn

from hpcai.config.schema import Model
from hpcai.models.small import make_norm


def build_resnet18(cfg: Model, in_channels: int, classes: int) -> nn.Module:
    """ResNet-18. Source: He et al., CVPR 2016; MONAI starts it with stride 1."""
    return _resnet(resnet18, cfg, in_channels, classes)


def build_resnet50(cfg: Model, in_channels: int, classes: int) -> nn.Module:
    """ResNet-50. Source: He et al., CVPR 2016; MONAI starts it with stride 1."""
    return _resnet(resnet50, cfg, in_channels, classes)


def build_densenet121(cfg: Model, in_channels: int, classes: int) -> nn.Module:
    """DenseNet-121. Source: Huang et al., CVPR 2017."""
    net: Any = DenseNet121(spatial_dims=cfg.spatial_dims, in_channels=in_channels, out_channels=classes)
    net.class_layers.flatten = nn.Sequential(net.class_layers.flatten, nn.Dropout(cfg.dropout))
    return _with_norm(net, cfg)


def _resnet(make: Any, cfg: Model, in_channels: int, classes: int) -> nn.Module:
    net = make(spatial_dims=cfg.spatial_dims, n_input_channels=in_channels, num_classes=classes)
    net.avgpool = nn.Sequential(net.avgpool, nn.Dropout(cfg.dropout))  # neither has weights: no key changes
    return _with_norm(net, cfg)


def _with_norm(net: nn.Module, cfg: Model) -> nn.Module:
    """`net`, with each BatchNorm replaced if `cfg.norm` is group; both start as weight 1, bias 0."""
    if cfg.norm == "group":
        for parent in list(net.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
                    setattr(parent, name, make_norm("group", cfg.spatial_dims, child.num_features))
    return net
