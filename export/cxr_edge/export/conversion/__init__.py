"""Conversion of a trained network to ONNX, TFLite and TensorRT files."""
