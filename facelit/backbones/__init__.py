"""Backbones: 112x112 face crops in, embeddings out."""

from facelit.backbones.iresnet import IResNet
from facelit.backbones.mobilefacenet import MobileFaceNet
from facelit.backbones.timm_model import TimmBackbone
from facelit.backbones.torchvision_model import TorchvisionBackbone
from facelit.backbones.vgg import VGG16

__all__ = ["VGG16", "IResNet", "MobileFaceNet", "TimmBackbone", "TorchvisionBackbone"]
