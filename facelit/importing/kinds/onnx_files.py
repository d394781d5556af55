"""Notable ONNX files; the preprocessing of an ONNX is read from its graph."""

from facelit.importing.kinds.kind import Published

PUBLISHED = (
    Published(
        "InsightFace w600k_r50, w600k_mbf (in buffalo_l, buffalo_s)",
        "ONNX: IResNet-50, MobileFaceNet",
        "https://github.com/deepinsight/insightface/tree/master/model_zoo",
        "non-commercial research",
        "WebFace600K",
        "not stated",
        "facelit import w600k_r50.onnx w600k_r50.ckpt",
    ),
    Published(
        "OpenCV SFace (face_recognition_sface_2021dec)",
        "ONNX: MobileFaceNet, 128 numbers",
        "https://github.com/opencv/opencv_zoo/tree/main/models/face_recognition_sface",
        "Apache-2.0",
        "not stated",
        "0.9940",
        "facelit import face_recognition_sface_2021dec.onnx sface.ckpt",
    ),
)
