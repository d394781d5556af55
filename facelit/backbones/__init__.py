"""Backbones: 112x112 face crops in, embeddings out."""

from facelit.backbones.arcface_mobilefacenet import ArcFaceMobileFaceNet
from facelit.backbones.imported import ImportedBackbone
from facelit.backbones.inception_resnet import InceptionResnetV1
from facelit.backbones.ir import AdaFaceIR
from facelit.backbones.iresnet import IResNet
from facelit.backbones.mobilefacenet import MobileFaceNet
from facelit.backbones.onnx_model import OnnxModel
from facelit.backbones.relu_mobilefacenet import ReluMobileFaceNet
from facelit.backbones.timm_model import TimmBackbone
from facelit.backbones.torchvision_model import TorchvisionBackbone
from facelit.backbones.vgg import VGG16

__all__ = [
    "VGG16",
    "AdaFaceIR",
    "ArcFaceMobileFaceNet",
    "IResNet",
    "ImportedBackbone",
    "InceptionResnetV1",
    "MobileFaceNet",
    "OnnxModel",
    "ReluMobileFaceNet",
    "TimmBackbone",
    "TorchvisionBackbone",
]
