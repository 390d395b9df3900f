"""Key styles met in the wild: other people's names of tensors in, our names of them out."""
