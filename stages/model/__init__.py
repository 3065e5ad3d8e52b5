"""The lesson: softmax regression from scratch in TensorFlow and in JAX, on a scaffold without either."""
