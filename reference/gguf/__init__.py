"""GGUF: ggml's block formats, and the file that holds them."""
