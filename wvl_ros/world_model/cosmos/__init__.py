"""The world model on Cosmos-Predict2, with the action embedders of its action-conditioned variant."""
