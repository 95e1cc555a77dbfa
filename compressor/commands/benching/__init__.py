"""`compress bench`: artifacts, ONNX files and models timed in turn, with the memory that each takes."""
