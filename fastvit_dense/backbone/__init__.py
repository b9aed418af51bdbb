"""FastViT: its variants, layers and blocks, the algebra that fuses it, published weights."""
