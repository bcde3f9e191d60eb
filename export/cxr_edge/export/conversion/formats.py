"""Names of the files in a bundle, apart from the code that writes them, so that `--help` imports no more than this."""

from __future__ import annotations

#: Explains by integrated gradients and decides nothing.
GRADIENT = "gradient.onnx"
#: File -> precision: all that can be written without a GPU.
FILES = {
    "model.onnx": "fp32",
    "model.fp16.onnx": "fp16",
    "model.fp32.tflite": "fp32",
    "model.fp16.tflite": "fp16",
    "model.int8.onnx": "int8",
    "model.int8.tflite": "int8",
    GRADIENT: "fp32",
}
#: For MediaPipe Tasks and ML Kit.
MEDIAPIPE = "model.mediapipe.tflite"
#: Of int8 that TensorRT can take: every range symmetric.
SYMMETRIC = "model.int8.symmetric.onnx"
#: Files for other clients than this project's runtime, written when named.
COMPANIONS = {
    # fp32: without the output `logit` the converter folds the temperature into weights, which fp16 would round.
    MEDIAPIPE: "fp32",
    SYMMETRIC: "int8",
}
