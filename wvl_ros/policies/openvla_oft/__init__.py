"""OpenVLA-OFT (Kim, Finn and Liang 2025): the published checkpoints, on transformers' own parts."""
