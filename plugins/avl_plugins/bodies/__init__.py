"""The ops in standard ONNX ops: for every runtime without a kernel of ours."""
