"""From a trained network to a file for production: pt2, ONNX or safetensors, low-rank as it was trained.

Read in this order: `options`, `interface` (what goes in and out), `folding` (BatchNorm into layers), `program`
(torch.export), `formats` (the three files), `quantization` (int8), `measure` (parity and accuracy), `write` (the whole job),
`load` (back again). Nothing here needs Ray, MLflow or Optuna; onnx, onnxruntime and safetensors are imported when needed.
"""
