"""The way of the data: rollouts, replay."""
